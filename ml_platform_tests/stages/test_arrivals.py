import errno
import hashlib
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import ArrivalChangedError, LandingZoneError, StorageError
from ml_platform.records import Arrival
from ml_platform.stages import _landing, arrivals
from ml_platform.stages._landing import LocalZone, _blocks

if TYPE_CHECKING:
    from collections.abc import Callable

UNSAFE = [
    "../passwd.csv",
    "a/b.csv",
    ".hidden.csv",
    "-option.csv",
    "a..csv",
    "new\nline.csv",
    "a b.csv",
    "a$(id).csv",
    "a.b;rm.csv",
    "a.csv\n.csv",
    "a.b/../../c.csv",
    "a[1...2].csv",
    "ä.csv",
    "a.csv.",
    "a.exe",
    "a.pkl",
    "csv",
    ".csv",
    "",
    "a" * 200 + ".csv",
]
SAFE = ["a.csv", "A-1_b.parquet", "2024-01-01.csv.gz", "x.jsonl", "UPPER.CSV", "a.b.c.parquet"]
quick = settings(max_examples=50, deadline=None, database=None)


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    (tmp_path / "landing" / "visits").mkdir(parents=True)
    return tmp_path / "landing"


def put(landing: Path, name: str, data: bytes = b"bytes", *, mtime_ns: int = 10**18) -> Path:
    path = landing / "visits" / name
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def found(landing: Path) -> list[Arrival]:
    return arrivals.list_files(LocalZone(landing), "visits").arrivals


def only(landing: Path) -> Arrival:
    (arrival,) = found(landing)
    return arrival


# Finding


def test_a_file_is_found_with_its_size_and_time(landing: Path) -> None:
    put(landing, "a.csv", b"12345", mtime_ns=1_700_000_000_123_456_789)

    assert found(landing) == [Arrival(model="visits", name="a.csv", size=5, mtime_ns=1_700_000_000_123_456_789)]


def test_an_empty_landing_zone_holds_no_arrival(landing: Path) -> None:
    assert found(landing) == []


def test_files_are_found_in_the_order_of_their_times_wherever_those_lie(landing: Path) -> None:
    far_future = 4 * 10**18
    for name, mtime_ns in (("d.csv", far_future), ("b.csv", 5), ("c.csv", 5), ("a.csv", 10**18)):
        put(landing, name, mtime_ns=mtime_ns)

    ordered = found(landing)

    assert [arrival.name for arrival in ordered] == ["b.csv", "c.csv", "a.csv", "d.csv"]
    assert len({arrival.key for arrival in ordered}) == 4


def test_a_landing_zone_that_cannot_be_listed_is_not_an_empty_one(landing: Path) -> None:
    with pytest.raises(LandingZoneError, match=r"cannot be listed: No such file.*ML_PLATFORM_LANDING_ZONE"):
        arrivals.list_files(LocalZone(landing), "others")


@pytest.mark.fault("D3")
def test_the_same_name_with_new_bytes_is_a_new_arrival(landing: Path) -> None:
    put(landing, "a.csv", b"old", mtime_ns=1)
    old = only(landing)
    put(landing, "a.csv", b"new!", mtime_ns=2)

    assert only(landing).key != old.key


@pytest.mark.fault("D3")
@pytest.mark.parametrize("change", [{"data": b"other size"}, {"mtime_ns": 2}])
def test_a_change_of_size_or_of_time_alone_is_a_new_arrival(landing: Path, change: dict[str, bytes | int]) -> None:
    before: dict[str, bytes | int] = {"data": b"bytes", "mtime_ns": 1}
    put(landing, "a.csv", **before)  # type: ignore[arg-type]
    old = only(landing)
    put(landing, "a.csv", **{**before, **change})  # type: ignore[arg-type]

    assert only(landing).key != old.key


@pytest.mark.fault("D17")
@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_is_no_arrivals(name: str) -> None:
    assert not arrivals.is_safe_name(name)


@pytest.mark.parametrize("name", SAFE)
def test_a_plain_name_can_be_an_arrivals(name: str) -> None:
    assert arrivals.is_safe_name(name)


@quick
@given(st.text(max_size=20), st.sampled_from(arrivals.SUFFIXES))
def test_a_safe_name_stays_in_its_folder_and_means_nothing_to_a_shell(stem: str, suffix: str) -> None:
    name = stem + suffix

    allowed = stem.replace("-", "").replace("_", "").replace(".", "")
    assert not arrivals.is_safe_name(name) or (allowed.isascii() and allowed.isalnum())
    assert not arrivals.is_safe_name(name) or (Path("/zone") / name).resolve().parent == Path("/zone")


@pytest.mark.fault("D17")
def test_unsafe_names_links_pipes_and_folders_are_not_found(landing: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("secret")
    folder = landing / "visits"
    (folder / "link.csv").symlink_to(outside)
    (folder / "dangling.csv").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    for name in ("new\nline.csv", ".hidden.csv", "notes.txt"):
        put(landing, name)
    put(landing, "good.csv")

    assert only(landing).name == "good.csv"


# Complete or not


def look(landing: Path, **options: Any) -> arrivals.Look:
    zone = LocalZone(landing)
    listing = arrivals.list_files(zone, "visits")
    # These files are of 2024: how long they wait matters to the tests of that only.
    options.setdefault("stuck_hours", math.inf)
    return arrivals.look(zone, listing.arrivals, listing.with_manifest, **options)


def names(found: arrivals.Look) -> list[str]:
    return [arrival.name for arrival in found.complete]


def manifest(landing: Path, name: str, data: bytes, **changes: Any) -> Path:
    path = landing / "visits" / f"{name}.manifest.json"
    said = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
    path.write_text(json.dumps(said))
    return path


@pytest.mark.fault("D1")
def test_a_file_is_complete_when_the_look_before_saw_it_as_it_is(landing: Path) -> None:
    put(landing, "a.csv", b"half")

    first = look(landing)
    put(landing, "a.csv", b"half and half")
    grown = look(landing, seen=first.held)
    put(landing, "a.csv", b"half and HALF", mtime_ns=10**18 + 1)
    rewritten = look(landing, seen=grown.held)
    still = look(landing, seen=rewritten.held)

    assert [names(found) for found in (first, grown, rewritten, still)] == [[], [], [], ["a.csv"]]
    assert "no manifest names it and it was not seen twice unchanged" in first.examples[0]
    assert (first.incomplete, still.incomplete, still.held) == (1, 0, [])


@pytest.mark.fault("D1")
def test_a_file_is_not_complete_before_it_has_the_size_that_its_manifest_names(landing: Path) -> None:
    manifest(landing, "a.csv", b"12345")
    put(landing, "a.csv", b"123")

    paused = look(landing)
    still_paused = look(landing, seen=[only(landing).key], at_rest=True)
    put(landing, "a.csv", b"12345")

    assert names(paused) == names(still_paused) == []
    assert paused.examples == ["a.csv: 3 of the 5 bytes that its manifest names"]
    assert names(look(landing)) == ["a.csv"]


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"size": 5',
        "[]",
        '{"size": true, "sha256": "' + "0" * 64 + '"}',
        '{"size": 5, "sha256": "x"}',
        "[" * 60_000,
    ],
)
def test_a_file_whose_manifest_cannot_be_read_waits_for_it(landing: Path, content: str) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"").write_text(content)

    found = look(landing, seen=[only(landing).key], at_rest=True)

    assert names(found) == []
    assert found.examples == ["a.csv: its manifest is no JSON object with size and sha256"]


@pytest.mark.fault("D1")
@pytest.mark.parametrize("ahead", [False, True])
def test_a_file_that_its_manifest_does_not_fit_for_long_is_named_first(landing: Path, ahead: bool) -> None:
    hour = 3600 * 10**9
    names_and_ages = [("fresh.csv", 1), ("old.csv", 25), ("broken.csv", 26), *((f"{n}.csv", 2) for n in range(5))]
    for name, age in names_and_ages:
        path = put(landing, name, b"123")
        os.utime(path, ns=(time.time_ns(), time.time_ns() + (age if ahead else -age) * hour))
        manifest(landing, name, b"12345")
    manifest(landing, "broken.csv", b"").write_text("{")

    found = look(landing, seen=[], at_rest=True, stuck_hours=24)

    assert names(found) == []
    assert sorted(found.stuck) == ["broken.csv", "old.csv"]
    assert found.incomplete == 8
    assert len(found.examples) == arrivals.EXAMPLES
    assert sorted(found.examples[:2]) == [
        "broken.csv: stuck, unchanged for more than 24 h: its manifest is no JSON object with size and sha256",
        "old.csv: stuck, unchanged for more than 24 h: 3 of the 5 bytes that its manifest names",
    ]


@pytest.mark.fault("D17")
def test_a_link_to_itself_hides_no_file(landing: Path) -> None:
    (landing / "visits" / "loop").symlink_to("loop")
    put(landing, "a.csv", b"12345")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv"]
    assert listing.ignored == ["loop"]


@pytest.mark.fault("D17")
def test_a_manifest_that_is_a_link_is_not_opened(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    made = manifest(landing, "a.csv", b"12345")
    made.rename(tmp_path / "outside.json")
    made.symlink_to(tmp_path / "outside.json")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert (listing.with_manifest, listing.ignored) == (set(), ["a.csv.manifest.json"])
    assert LocalZone(landing).read("visits", [made.name], 100) == {}


def test_manifests_are_neither_arrivals_nor_ignored(landing: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345")
    manifest(landing, "came-before-its-file.csv", b"12345")
    (landing / "visits" / "my file.csv.manifest.json").write_text("{}")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv"]
    assert listing.with_manifest == {"a.csv", "came-before-its-file.csv"}
    assert listing.ignored == ["my file.csv.manifest.json"]


def test_a_person_need_not_wait_for_a_file_that_rests(landing: Path) -> None:
    now = time.time_ns()
    put(landing, "rests.csv", mtime_ns=now - (arrivals.SECONDS_OF_REST + 1) * 10**9)
    put(landing, "fresh.csv", mtime_ns=now)
    put(landing, "before-1970.csv", mtime_ns=-1)

    assert names(look(landing, at_rest=True)) == ["before-1970.csv", "rests.csv"]
    assert names(look(landing)) == []


@pytest.mark.fault("D15")
def test_wherever_the_times_lie_each_file_is_complete_once(landing: Path) -> None:
    for name, mtime_ns in (("future.csv", 4 * 10**18), ("past.csv", 5), ("now.csv", time.time_ns()), ("b.csv", 5)):
        put(landing, name, mtime_ns=mtime_ns)

    first = look(landing)
    second = look(landing, seen=first.held)

    assert names(first) == []
    assert names(second) == ["b.csv", "past.csv", "now.csv", "future.csv"]
    assert len({arrival.key for arrival in second.complete}) == 4


@pytest.mark.fault("D16")
def test_a_look_takes_and_remembers_a_bounded_number(landing: Path) -> None:
    for number in range(10):
        put(landing, f"{number}.csv", mtime_ns=number)
    for number in (3, 4, 5, 6, 7):
        manifest(landing, f"{number}.csv", b"bytes")

    found, taken = arrivals.Look(), []
    zone = LocalZone(landing)
    for _ in range(8):
        listing = arrivals.list_files(zone, "visits")
        left = [arrival for arrival in listing.arrivals if arrival.name not in taken]
        found = arrivals.look(zone, left, listing.with_manifest, seen=found.held, limit=2)
        assert max(len(found.complete), len(found.held)) <= 2
        taken += names(found)

    assert sorted(taken) == [f"{number}.csv" for number in range(10)]


# Keeping


def test_what_the_manifest_promises_is_kept_with_the_bytes(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345", sha256="F" * 64)

    batch = arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw")

    assert batch.promised_sha256 == "f" * 64
    assert batch.sha256 == hashlib.sha256(b"12345").hexdigest()


def test_a_file_whose_manifest_names_another_size_meanwhile_is_not_taken(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"123456")

    with pytest.raises(ArrivalChangedError):
        arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D1")
def test_a_file_whose_manifest_is_being_written_again_is_not_taken(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345").write_text('{"size": 5, "sha')

    with pytest.raises(ArrivalChangedError):
        arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D1")
def test_a_manifest_that_cannot_be_read_is_not_a_missing_one(
    landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(landing, "a.csv", b"12345")
    broken = manifest(landing, "a.csv", b"12345")
    real = os.open

    def failing(path: Any, *options: Any, **more: Any) -> int:
        if Path(path) == broken:
            raise OSError(errno.EIO, "the disk is broken")
        return real(path, *options, **more)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(ArrivalChangedError):
        arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw")


@pytest.mark.fault("D3")
def test_only_the_arrival_itself_is_removed(landing: Path, tmp_path: Path) -> None:
    zone, beside = LocalZone(landing), manifest(landing, "a.csv", b"12345")
    path = put(landing, "a.csv", b"12345")
    first = only(landing)
    put(landing, "a.csv", b"another")

    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    assert path.read_bytes() == b"another"
    assert beside.exists()
    arrivals.remove(zone, only(landing))
    assert list((landing / "visits").iterdir()) == []
    arrivals.remove(zone, first)
    path.symlink_to(tmp_path)
    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    assert path.is_symlink()


def test_the_bytes_are_kept_under_their_digest(landing: Path, tmp_path: Path) -> None:
    data = os.urandom(_landing.BLOCK + 17)
    put(landing, "a.csv.gz", data)
    arrival = only(landing)

    batch = arrivals.keep_bytes(arrival, LocalZone(landing), tmp_path / "raw")

    assert batch.arrival == arrival
    assert batch.sha256 == hashlib.sha256(data).hexdigest()
    assert Path(batch.path) == tmp_path / "raw" / f"{batch.sha256}.csv.gz"
    assert Path(batch.path).read_bytes() == data


@pytest.mark.fault("D2")
def test_the_same_bytes_under_two_names_are_kept_once(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"same")
    put(landing, "b.csv", b"same")

    batches = [arrivals.keep_bytes(a, LocalZone(landing), tmp_path / "raw") for a in found(landing)]

    assert len({batch.arrival.key for batch in batches}) == 2
    assert len({(batch.sha256, batch.path) for batch in batches}) == 1
    assert [str(path) for path in (tmp_path / "raw").iterdir()] == [batches[0].path]


@pytest.mark.fault("D3")
def test_the_old_bytes_are_kept_beside_the_new_ones(landing: Path, tmp_path: Path) -> None:
    kept = []
    for data in (b"old", b"new!"):
        put(landing, "a.csv", data)
        kept.append(Path(arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw").path))

    assert [path.read_bytes() for path in kept] == [b"old", b"new!"]


def test_a_file_in_capitals_is_kept_under_the_formats_suffix(landing: Path, tmp_path: Path) -> None:
    put(landing, "A.CSV")

    assert Path(arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw").path).suffix == ".csv"


@pytest.mark.parametrize("change", [{"size": 4}, {"mtime_ns": 1}])
def test_a_file_that_changed_since_it_was_found_is_not_taken(
    landing: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    put(landing, "a.csv")
    before = replace(only(landing), **change)  # type: ignore[arg-type]

    with pytest.raises(LandingZoneError, match="changed since it was found"):
        arrivals.keep_bytes(before, LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D17")
@pytest.mark.parametrize("trick", ["link", "pipe", "folder", "nothing"])
def test_what_a_file_was_swapped_for_is_not_opened(landing: Path, tmp_path: Path, trick: str) -> None:
    path = put(landing, "a.csv")
    before = only(landing)
    path.unlink()
    (tmp_path / "outside.csv").write_bytes(b"bytes")
    os.utime(tmp_path / "outside.csv", ns=(before.mtime_ns, before.mtime_ns))
    tricks: dict[str, Callable[[], None]] = {
        "link": lambda: path.symlink_to(tmp_path / "outside.csv"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nothing": lambda: None,
    }
    tricks[trick]()

    with pytest.raises(LandingZoneError, match=r"cannot be opened|changed since it was found"):
        arrivals.keep_bytes(before, LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_copy_that_cannot_be_finished_leaves_nothing_half_done(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"bytes")
    taken = tmp_path / "raw" / f"{hashlib.sha256(b'bytes').hexdigest()}.csv"
    taken.mkdir(parents=True)

    with pytest.raises(StorageError, match="Is a directory"):
        arrivals.keep_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == [taken]


# Landing


def test_a_landed_file_is_complete_at_once(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"12345")

    assert names(look(landing)) == ["a.csv"]


def test_a_landed_file_is_an_arrival_and_nothing_else_is_left(landing: Path) -> None:
    assert arrivals.land(LocalZone(landing), "visits", "a.csv", b"12345")

    assert sorted(path.name for path in (landing / "visits").iterdir()) == ["a.csv", "a.csv.manifest.json"]
    assert only(landing).size == 5


def test_the_folder_is_made_for_the_first_file(tmp_path: Path) -> None:
    arrivals.land(LocalZone(tmp_path / "landing"), "visits", "a.csv", b"1")

    assert (tmp_path / "landing" / "visits" / "a.csv").read_bytes() == b"1"


def test_landing_the_same_bytes_again_is_no_new_arrival(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    before = only(landing)

    assert not arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    assert only(landing) == before


def test_landing_other_bytes_under_the_name_replaces_them(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")

    assert arrivals.land(LocalZone(landing), "visits", "a.csv", b"22")
    assert (landing / "visits" / "a.csv").read_bytes() == b"22"


@pytest.mark.fault("D17")
@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_name_is_not_landed(landing: Path, name: str) -> None:
    with pytest.raises(LandingZoneError, match="The file name must consist of"):
        arrivals.land(LocalZone(landing), "visits", name, b"1")
    assert [path for path in landing.rglob("*") if path.is_file()] == []


def test_a_file_that_cannot_be_landed_leaves_nothing_behind(landing: Path) -> None:
    (landing / "visits" / "a.csv").mkdir()

    with pytest.raises(StorageError, match="Is a directory"):
        arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    assert [path.name for path in (landing / "visits").iterdir()] == ["a.csv"]


def test_a_file_that_changes_while_it_is_copied_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "landing" / "visits"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"half")
    (arrival,) = found(tmp_path / "landing")
    checked = _landing._require_unchanged

    def check_and_go_on_writing(*arguments: Any) -> None:
        checked(*arguments)
        with (folder / "a.csv").open("ab") as writer:
            writer.write(b" and half")

    monkeypatch.setattr(_landing, "_require_unchanged", check_and_go_on_writing)
    monkeypatch.setattr(_landing, "BLOCK", 2)
    with pytest.raises(LandingZoneError, match="changed since it was found"):
        arrivals.keep_bytes(arrival, LocalZone(tmp_path / "landing"), tmp_path / "raw")

    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D18")
def test_of_a_file_that_grows_without_end_no_more_is_read_than_shows_it(landing: Path) -> None:
    put(landing, "a.csv", b"bytes")
    arrival = only(landing)
    put(landing, "a.csv", b"x" * 1_000_000)

    with (landing / "visits" / "a.csv").open("rb") as grown:
        read = [len(block) for block in _blocks(arrival, grown)]

    assert sum(read) == arrival.size + 1
