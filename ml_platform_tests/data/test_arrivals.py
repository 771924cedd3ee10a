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

from ml_platform.data import arrivals
from ml_platform.errors import ArrivalChangedError, LandingZoneError, StorageError
from ml_platform.records.data import Arrival
from ml_platform.storage import landing_zone
from ml_platform.storage.landing_zone import LocalZone, _read_blocks

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


def list_arrivals(landing: Path) -> list[Arrival]:
    return arrivals.list_files(LocalZone(landing), "visits").arrivals


def only(landing: Path) -> Arrival:
    (arrival,) = list_arrivals(landing)
    return arrival


# Listing


def test_list_file_has_size_and_time(landing: Path) -> None:
    put(landing, "a.csv", b"12345", mtime_ns=1_700_000_000_123_456_789)

    assert list_arrivals(landing) == [Arrival(model="visits", name="a.csv", size=5, mtime_ns=1_700_000_000_123_456_789)]


def test_list_empty_zone_has_no_arrivals(landing: Path) -> None:
    assert list_arrivals(landing) == []


def test_list_files_are_sorted_by_time(landing: Path) -> None:
    far_future = 4 * 10**18
    for name, mtime_ns in (("d.csv", far_future), ("b.csv", 5), ("c.csv", 5), ("a.csv", 10**18)):
        put(landing, name, mtime_ns=mtime_ns)

    ordered = list_arrivals(landing)

    assert [arrival.name for arrival in ordered] == ["b.csv", "c.csv", "a.csv", "d.csv"]
    assert len({arrival.key for arrival in ordered}) == 4


def test_list_missing_folder_is_an_error(landing: Path) -> None:
    with pytest.raises(LandingZoneError, match=r"cannot be listed: No such file.*ML_PLATFORM_LANDING_ZONE"):
        arrivals.list_files(LocalZone(landing), "others")


@pytest.mark.fault("D3")
def test_key_same_name_new_bytes_differs(landing: Path) -> None:
    put(landing, "a.csv", b"old", mtime_ns=1)
    old = only(landing)
    put(landing, "a.csv", b"new!", mtime_ns=2)

    assert only(landing).key != old.key


@pytest.mark.fault("D3")
@pytest.mark.parametrize("change", [{"data": b"other size"}, {"mtime_ns": 2}])
def test_key_new_size_or_time_differs(landing: Path, change: dict[str, bytes | int]) -> None:
    before: dict[str, bytes | int] = {"data": b"bytes", "mtime_ns": 1}
    put(landing, "a.csv", **before)  # type: ignore[arg-type]
    old = only(landing)
    put(landing, "a.csv", **{**before, **change})  # type: ignore[arg-type]

    assert only(landing).key != old.key


@pytest.mark.fault("D17")
@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_name_is_rejected(name: str) -> None:
    assert not arrivals.is_safe_name(name)


@pytest.mark.parametrize("name", SAFE)
def test_plain_name_is_safe(name: str) -> None:
    assert arrivals.is_safe_name(name)


@quick
@given(st.text(max_size=20), st.sampled_from(arrivals.SUFFIXES))
def test_safe_name_has_no_path_or_shell_syntax(stem: str, suffix: str) -> None:
    name = stem + suffix

    allowed = stem.replace("-", "").replace("_", "").replace(".", "")
    assert not arrivals.is_safe_name(name) or (allowed.isascii() and allowed.isalnum())
    assert not arrivals.is_safe_name(name) or (Path("/zone") / name).resolve().parent == Path("/zone")


@pytest.mark.fault("D17")
def test_list_unsafe_names_and_special_files_are_ignored(landing: Path, tmp_path: Path) -> None:
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


# Scans


def scan(landing: Path, **options: Any) -> arrivals.LandingZoneScan:
    zone = LocalZone(landing)
    listing = arrivals.list_files(zone, "visits")
    # These files are of 2001: only the tests of stuck files depend on their age.
    options.setdefault("stuck_hours", math.inf)
    return arrivals.find_complete_arrivals(zone, listing.arrivals, listing.with_manifest, **options)


def names(result: arrivals.LandingZoneScan) -> list[str]:
    return [arrival.name for arrival in result.complete]


def manifest(landing: Path, name: str, data: bytes, **changes: Any) -> Path:
    path = landing / "visits" / f"{name}.manifest.json"
    content = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.fault("D1")
def test_scan_unchanged_file_is_complete(landing: Path) -> None:
    put(landing, "a.csv", b"half")

    first = scan(landing)
    put(landing, "a.csv", b"half and half")
    grown = scan(landing, seen=first.held)
    put(landing, "a.csv", b"half and HALF", mtime_ns=10**18 + 1)
    rewritten = scan(landing, seen=grown.held)
    still = scan(landing, seen=rewritten.held)

    assert [names(result) for result in (first, grown, rewritten, still)] == [[], [], [], ["a.csv"]]
    assert "it has no manifest, and two scans have not yet seen it unchanged" in first.examples[0]
    assert (first.incomplete, still.incomplete, still.held) == (1, 0, [])


@pytest.mark.fault("D1")
def test_scan_file_below_manifest_size_is_incomplete(landing: Path) -> None:
    manifest(landing, "a.csv", b"12345")
    put(landing, "a.csv", b"123")

    paused = scan(landing)
    still_paused = scan(landing, seen=[only(landing).key], at_rest=True)
    put(landing, "a.csv", b"12345")

    assert names(paused) == names(still_paused) == []
    assert paused.examples == ["a.csv: it has 3 bytes, its manifest expects 5"]
    assert names(scan(landing)) == ["a.csv"]


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"size": 5',
        "[]",
        '{"size": true, "sha256": "' + "0" * 64 + '"}',
        '{"size": 5, "sha256": "x"}',
        '{"size": 5, "sha256": "' + "0" * 64 + '", "corrects": "yes"}',
        "[" * 60_000,
    ],
)
def test_scan_invalid_manifest_is_incomplete(landing: Path, content: str) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"").write_text(content)

    result = scan(landing, seen=[only(landing).key], at_rest=True)

    assert names(result) == []
    assert result.examples == ["a.csv: its manifest is not a JSON object with 'size' and 'sha256'"]


@pytest.mark.fault("D1")
@pytest.mark.parametrize("ahead", [False, True])
def test_scan_stuck_files_come_first(landing: Path, ahead: bool) -> None:
    hour = 3600 * 10**9
    names_and_ages = [("fresh.csv", 1), ("old.csv", 25), ("broken.csv", 26), *((f"{n}.csv", 2) for n in range(5))]
    for name, age in names_and_ages:
        path = put(landing, name, b"123")
        os.utime(path, ns=(time.time_ns(), time.time_ns() + (age if ahead else -age) * hour))
        manifest(landing, name, b"12345")
    manifest(landing, "broken.csv", b"").write_text("{")

    result = scan(landing, seen=[], at_rest=True, stuck_hours=24)

    assert names(result) == []
    assert sorted(result.stuck) == ["broken.csv", "old.csv"]
    assert result.incomplete == 8
    assert len(result.examples) == arrivals.EXAMPLES
    assert sorted(result.examples[:2]) == [
        "broken.csv: stuck, unchanged for more than 24 h: its manifest is not a JSON object with 'size' and 'sha256'",
        "old.csv: stuck, unchanged for more than 24 h: it has 3 bytes, its manifest expects 5",
    ]


@pytest.mark.fault("D17")
def test_list_link_to_itself_hides_no_file(landing: Path) -> None:
    (landing / "visits" / "loop").symlink_to("loop")
    put(landing, "a.csv", b"12345")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv"]
    assert listing.ignored == ["loop"]


@pytest.mark.fault("D17")
def test_list_linked_manifest_is_not_opened(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    made = manifest(landing, "a.csv", b"12345")
    made.rename(tmp_path / "outside.json")
    made.symlink_to(tmp_path / "outside.json")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert (listing.with_manifest, listing.ignored) == (set(), ["a.csv.manifest.json"])
    assert LocalZone(landing).read("visits", [made.name], 100) == {}


def test_list_manifests_are_neither_arrivals_nor_ignored(landing: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345")
    manifest(landing, "came-before-its-file.csv", b"12345")
    (landing / "visits" / "my file.csv.manifest.json").write_text("{}")

    listing = arrivals.list_files(LocalZone(landing), "visits")

    assert [arrival.name for arrival in listing.arrivals] == ["a.csv"]
    assert listing.with_manifest == {"a.csv", "came-before-its-file.csv"}
    assert listing.ignored == ["my file.csv.manifest.json"]


def test_scan_at_rest_old_file_is_complete(landing: Path) -> None:
    now = time.time_ns()
    put(landing, "rests.csv", mtime_ns=now - (arrivals.SECONDS_OF_REST + 1) * 10**9)
    put(landing, "fresh.csv", mtime_ns=now)
    put(landing, "before-1970.csv", mtime_ns=-1)

    assert names(scan(landing, at_rest=True)) == ["before-1970.csv", "rests.csv"]
    assert names(scan(landing)) == []


@pytest.mark.fault("D15")
def test_scan_any_file_time_is_complete_once(landing: Path) -> None:
    for name, mtime_ns in (("future.csv", 4 * 10**18), ("past.csv", 5), ("now.csv", time.time_ns()), ("b.csv", 5)):
        put(landing, name, mtime_ns=mtime_ns)

    first = scan(landing)
    second = scan(landing, seen=first.held)

    assert names(first) == []
    assert names(second) == ["b.csv", "past.csv", "now.csv", "future.csv"]
    assert len({arrival.key for arrival in second.complete}) == 4


@pytest.mark.fault("D16")
def test_scan_numbers_of_files_are_bounded(landing: Path) -> None:
    for number in range(10):
        put(landing, f"{number}.csv", mtime_ns=number)
    for number in (3, 4, 5, 6, 7):
        manifest(landing, f"{number}.csv", b"bytes")

    result, taken = arrivals.LandingZoneScan(), []
    zone = LocalZone(landing)
    for _ in range(8):
        listing = arrivals.list_files(zone, "visits")
        left = [arrival for arrival in listing.arrivals if arrival.name not in taken]
        result = arrivals.find_complete_arrivals(zone, left, listing.with_manifest, seen=result.held, limit=2)
        assert max(len(result.complete), len(result.held)) <= 2
        taken += names(result)

    assert sorted(taken) == [f"{number}.csv" for number in range(10)]


# Storing


def test_store_manifest_digest_is_recorded(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345", sha256="F" * 64)

    batch = arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")

    assert batch.promised_sha256 == "f" * 64
    assert batch.sha256 == hashlib.sha256(b"12345").hexdigest()


@pytest.mark.parametrize("corrects", [False, True])
def test_land_correction_is_declared_in_manifest(landing: Path, tmp_path: Path, corrects: bool) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"12345", corrects=corrects)

    batch = arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")

    assert batch.corrects is corrects


def test_store_manifest_of_other_size_is_refused(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"123456")

    with pytest.raises(ArrivalChangedError):
        arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D1")
def test_store_half_written_manifest_is_refused(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"12345")
    manifest(landing, "a.csv", b"12345").write_text('{"size": 5, "sha')

    with pytest.raises(ArrivalChangedError):
        arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D1")
def test_store_unreadable_manifest_is_refused(landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(landing, "a.csv", b"12345")
    broken = manifest(landing, "a.csv", b"12345")
    real = os.open

    def fail(path: Any, *options: Any, **more: Any) -> int:
        if Path(path) == broken:
            raise OSError(errno.EIO, "the disk is broken")
        return real(path, *options, **more)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ArrivalChangedError):
        arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")


@pytest.mark.fault("D3")
def test_remove_changed_file_is_refused(landing: Path, tmp_path: Path) -> None:
    zone, manifest_file = LocalZone(landing), manifest(landing, "a.csv", b"12345")
    path = put(landing, "a.csv", b"12345")
    first = only(landing)
    put(landing, "a.csv", b"another")

    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    assert path.read_bytes() == b"another"
    assert manifest_file.exists()
    arrivals.remove(zone, only(landing))
    assert list((landing / "visits").iterdir()) == []
    arrivals.remove(zone, first)
    path.symlink_to(tmp_path)
    with pytest.raises(ArrivalChangedError):
        arrivals.remove(zone, first)
    assert path.is_symlink()


def test_store_bytes_are_named_by_digest(landing: Path, tmp_path: Path) -> None:
    data = os.urandom(landing_zone.BLOCK + 17)
    put(landing, "a.csv.gz", data)
    arrival = only(landing)

    batch = arrivals.store_bytes(arrival, LocalZone(landing), tmp_path / "raw")

    assert batch.arrival == arrival
    assert batch.sha256 == hashlib.sha256(data).hexdigest()
    assert Path(batch.path) == tmp_path / "raw" / f"{batch.sha256}.csv.gz"
    assert Path(batch.path).read_bytes() == data


@pytest.mark.fault("D2")
def test_store_equal_bytes_are_stored_once(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"same")
    put(landing, "b.csv", b"same")

    batches = [arrivals.store_bytes(a, LocalZone(landing), tmp_path / "raw") for a in list_arrivals(landing)]

    assert len({batch.arrival.key for batch in batches}) == 2
    assert len({(batch.sha256, batch.path) for batch in batches}) == 1
    assert [str(path) for path in (tmp_path / "raw").iterdir()] == [batches[0].path]


@pytest.mark.fault("D3")
def test_store_replaced_file_keeps_old_bytes(landing: Path, tmp_path: Path) -> None:
    kept = []
    for data in (b"old", b"new!"):
        put(landing, "a.csv", data)
        kept.append(Path(arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw").path))

    assert [path.read_bytes() for path in kept] == [b"old", b"new!"]


def test_store_suffix_is_lower_case(landing: Path, tmp_path: Path) -> None:
    put(landing, "A.CSV")

    assert Path(arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw").path).suffix == ".csv"


@pytest.mark.parametrize("change", [{"size": 4}, {"mtime_ns": 1}])
def test_store_changed_file_is_refused(landing: Path, tmp_path: Path, change: dict[str, int]) -> None:
    put(landing, "a.csv")
    before = replace(only(landing), **change)  # type: ignore[arg-type]

    with pytest.raises(LandingZoneError, match="changed since it was found"):
        arrivals.store_bytes(before, LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D17")
@pytest.mark.parametrize("replacement", ["link", "pipe", "folder", "nothing"])
def test_store_swapped_special_file_is_not_opened(landing: Path, tmp_path: Path, replacement: str) -> None:
    path = put(landing, "a.csv")
    before = only(landing)
    path.unlink()
    (tmp_path / "outside.csv").write_bytes(b"bytes")
    os.utime(tmp_path / "outside.csv", ns=(before.mtime_ns, before.mtime_ns))
    replacements: dict[str, Callable[[], None]] = {
        "link": lambda: path.symlink_to(tmp_path / "outside.csv"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nothing": lambda: None,
    }
    replacements[replacement]()

    with pytest.raises(LandingZoneError, match=r"cannot be opened|changed since it was found"):
        arrivals.store_bytes(before, LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_store_failed_copy_leaves_no_files(landing: Path, tmp_path: Path) -> None:
    put(landing, "a.csv", b"bytes")
    taken = tmp_path / "raw" / f"{hashlib.sha256(b'bytes').hexdigest()}.csv"
    taken.mkdir(parents=True)

    with pytest.raises(StorageError, match="Is a directory"):
        arrivals.store_bytes(only(landing), LocalZone(landing), tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == [taken]


# Landing


def test_land_file_is_complete_at_once(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"12345")

    assert names(scan(landing)) == ["a.csv"]


def test_land_writes_only_file_and_manifest(landing: Path) -> None:
    assert arrivals.land(LocalZone(landing), "visits", "a.csv", b"12345")

    assert sorted(path.name for path in (landing / "visits").iterdir()) == ["a.csv", "a.csv.manifest.json"]
    assert only(landing).size == 5


def test_land_first_file_creates_the_folder(tmp_path: Path) -> None:
    arrivals.land(LocalZone(tmp_path / "landing"), "visits", "a.csv", b"1")

    assert (tmp_path / "landing" / "visits" / "a.csv").read_bytes() == b"1"


def test_land_same_bytes_again_changes_nothing(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    before = only(landing)

    assert not arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    assert only(landing) == before


def test_land_other_bytes_replaces_the_file(landing: Path) -> None:
    arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")

    assert arrivals.land(LocalZone(landing), "visits", "a.csv", b"22")
    assert (landing / "visits" / "a.csv").read_bytes() == b"22"


@pytest.mark.fault("D17")
@pytest.mark.parametrize("name", UNSAFE)
def test_land_unsafe_name_is_refused(landing: Path, name: str) -> None:
    with pytest.raises(LandingZoneError, match="The file name must consist of"):
        arrivals.land(LocalZone(landing), "visits", name, b"1")
    assert [path for path in landing.rglob("*") if path.is_file()] == []


def test_land_failed_write_leaves_no_files(landing: Path) -> None:
    (landing / "visits" / "a.csv").mkdir()

    with pytest.raises(StorageError, match="Is a directory"):
        arrivals.land(LocalZone(landing), "visits", "a.csv", b"1")
    assert [path.name for path in (landing / "visits").iterdir()] == ["a.csv"]


def test_store_file_changing_during_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "landing" / "visits"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_bytes(b"half")
    (arrival,) = list_arrivals(tmp_path / "landing")
    checked = landing_zone._require_unchanged

    def check_and_append(*arguments: Any) -> None:
        checked(*arguments)
        with (folder / "a.csv").open("ab") as writer:
            writer.write(b" and half")

    monkeypatch.setattr(landing_zone, "_require_unchanged", check_and_append)
    monkeypatch.setattr(landing_zone, "BLOCK", 2)
    with pytest.raises(LandingZoneError, match="changed since it was found"):
        arrivals.store_bytes(arrival, LocalZone(tmp_path / "landing"), tmp_path / "raw")

    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.fault("D18")
def test_read_blocks_growing_file_is_bounded(landing: Path) -> None:
    put(landing, "a.csv", b"bytes")
    arrival = only(landing)
    put(landing, "a.csv", b"x" * 1_000_000)

    with (landing / "visits" / "a.csv").open("rb") as grown:
        read = [len(block) for block in _read_blocks(arrival, grown)]

    assert sum(read) == arrival.size + 1


@pytest.mark.fault("D17")
@pytest.mark.parametrize("step", ["list", "read", "write", "remove", "prepare"])
def test_linked_model_folder_is_refused(tmp_path: Path, step: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.csv").write_bytes(b"secret")
    (tmp_path / "zone").mkdir()
    (tmp_path / "zone" / "visits").symlink_to(outside)
    zone = LocalZone(tmp_path / "zone")
    steps: dict[str, Callable[[], object]] = {
        "list": lambda: arrivals.list_files(zone, "visits"),
        "read": lambda: zone.read("visits", ["a.csv"], 10),
        "write": lambda: zone.write("visits", "b.csv", b""),
        "remove": lambda: zone.remove("visits", "a.csv"),
        "prepare": lambda: zone.prepare("visits"),
    }
    with pytest.raises(LandingZoneError, match="is a link"):
        steps[step]()
    assert [path.name for path in outside.iterdir()] == ["a.csv"]
