"""Tests of the formats of MLflow's clients and of the Open Inference Protocol, and of their errors."""

import json
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import MAX_PROBLEMS, RequestError, RequestProblem
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Field, RequestContract, Rule
from ml_platform.serving.http import wire_formats
from ml_platform.serving.http.wire_formats import (
    LONGEST_KEY,
    Formats,
    Requests,
    error_answer,
    inference_answer,
    invocation_answer,
    metadata,
)

CONTRACT = RequestContract(
    model="visits",
    task="binary",
    features=(
        Field(name="pages", kind="int", dtype="int64", rules=(Rule(name="ge", value=0),)),
        Field(name="seconds", kind="float", dtype="float64", nullable=True),
        Field(name="plan", kind="str", dtype="str", rules=(Rule(name="isin", value=["free", "paid"]),)),
        Field(name="member", kind="bool", dtype="bool"),
    ),
    entity=Field(name="visitor", kind="int", dtype="int64"),
    classes=(0, 1),
    positive="yes",
)
FORMATS = Formats(CONTRACT, max_records=3)
ROW = {"pages": 3, "seconds": 2.5, "plan": "free", "member": True}
RECORD = (3, 2.5, "free", True)
TENSORS = [
    {"name": "pages", "datatype": "INT64", "shape": [1], "data": [3]},
    {"name": "seconds", "datatype": "FP64", "shape": [1], "data": [2.5]},
    {"name": "plan", "datatype": "BYTES", "shape": [1], "data": ["free"]},
    {"name": "member", "datatype": "BOOL", "shape": [1], "data": [True]},
]


def tensors(**changes: Any) -> list[dict[str, Any]]:
    """Return the tensors of one record, with changes to the tensor of the pages."""
    return [{**TENSORS[0], **changes}, *TENSORS[1:]]


def read_invocation(body: Any) -> Requests:
    return FORMATS.read_invocation(json.dumps(body).encode())


def read_inference(**body: Any) -> Requests:
    return FORMATS.read_inference(json.dumps(body).encode())


def catch_refusal(read: Any, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert json.loads(error_answer(caught.value))["error"] == str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [ROW]},
        {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())]}},
        {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())], "index": [17]}},
        {"dataframe_split": {"columns": list(ROW)[::-1], "data": [list(ROW.values())[::-1]]}},
        {"inputs": [ROW]},
        {"inputs": ROW},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"instances": [ROW]},
        {"instances": {name: [value] for name, value in ROW.items()}, "params": {}},
        {"dataframe_records": [ROW], "params": None},
    ],
)
def test_each_form_of_invocation_gives_same_records(body: dict[str, Any]) -> None:
    assert read_invocation(body) == Requests(records=[RECORD])


def test_entities_and_key_are_read() -> None:
    body = {"dataframe_records": [{**ROW, "visitor": 7}, ROW], "params": {"key": "basket 9"}}

    assert read_invocation(body) == Requests(records=[RECORD, RECORD], entities=[7, None], sticky_key="basket 9")
    assert read_invocation({"inputs": [ROW], "params": {"key": 17}}).sticky_key == "17"
    assert read_inference(inputs=TENSORS, parameters={"key": "basket 9", "priority": 3}).sticky_key == "basket 9"


@pytest.mark.parametrize("key", ["", "x" * (LONGEST_KEY + 1), True, 1.5, [1], {}])
def test_invalid_key_is_refused(key: Any) -> None:
    for body in ({"inputs": [ROW], "params": {"key": key}}, {"inputs": TENSORS, "parameters": {"key": key}}):
        read = FORMATS.read_invocation if "params" in body else FORMATS.read_inference
        assert catch_refusal(read, json.dumps(body).encode()).status == 422


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "must be JSON"),
        (b'{"inputs": [', 400, "must be JSON"),
        (b'{"inputs": "\xff"}', 400, "must be JSON"),
        (b'{"dataframe_records": [{"pages": NaN}]}', 400, "no NaN"),
        (b'{"dataframe_records": [{"pages": -Infinity}]}', 400, "no NaN"),
        (b'{"inputs": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400, "nested too deeply"),
        (b'{"params": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}", 400, "nested too deeply"),
        (b"[]", 400, "known format"),
        (b"null", 400, "known format"),
        (b"{}", 400, "exactly one of"),
        (b'{"inputs": [], "instances": []}', 400, "exactly one of"),
        (b'{"inputs": [], "signature_name": "x"}', 400, "signature_name"),
        (b'{"dataframe_split": {"data": []}}', 400, "columns"),
        (b'{"dataframe_split": {"columns": "pages", "data": []}}', 400, "known format"),
        (b'{"inputs": []}', 422, "at least one record"),
        (b'{"inputs": {}}', 422, "is required"),
        (b'{"inputs": 7}', 422, "must be a list of records"),
        (b'{"inputs": [[3, 2.5, "free", true]]}', 422, "must be an object"),
        (b'{"inputs": [{}], "params": {"kye": "x"}}', 422, "'kye' params may only have 'key'"),
        (b'{"inputs": [{}], "params": 7}', 400, "known format"),
    ],
)
def test_invalid_invocation_is_refused(body: bytes, status: int, message: str) -> None:
    error = catch_refusal(FORMATS.read_invocation, body)

    assert error.status == status
    assert message in str(error)


def test_too_many_records_are_refused() -> None:
    assert len(read_invocation({"inputs": [ROW] * 3}).records) == 3
    assert catch_refusal(FORMATS.read_invocation, json.dumps({"inputs": [ROW] * 4}).encode()).status == 413
    four = [{**tensor, "shape": [4], "data": list(tensor["data"]) * 4} for tensor in TENSORS]
    assert catch_refusal(FORMATS.read_inference, json.dumps({"inputs": four}).encode()).status == 413


@pytest.mark.fault("R11")
@pytest.mark.parametrize("items", ["{}", "[]", "[[]]", "null", "1", '"a,b"', '{"pages":3}', "[3]"])
@pytest.mark.parametrize(
    "form",
    [
        '{"dataframe_split":{"columns":["pages","plan","member"],"data":[ITEMS]}}',
        '{"dataframe_records":[ITEMS]}',
        '{"inputs":[ITEMS]}',
        '{"inputs":{"pages":[ITEMS],"plan":["free"],"member":[true]}}',
    ],
)
def test_invalid_records_above_limit_are_not_built(form: str, items: str) -> None:
    body = form.replace("ITEMS", ",".join([items] * 4)).encode()

    error = catch_refusal(FORMATS.read_invocation, body)

    assert error.status == 413
    assert str(error) == "must hold at most 3 records. Got 4 instead."


def test_text_with_commas_is_no_further_record() -> None:
    few = Formats(replace(CONTRACT, features=(Field(name="note", kind="str", dtype="str"),)), max_records=3)
    body = json.dumps({"inputs": [{"note": ", " * 100}] * 3}).encode()

    assert few.read_invocation(body).records == [(", " * 100,)] * 3


# Comparing each column with each other took minutes for these bodies.
@pytest.mark.fault("R11")
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "columns", [["pages"] * 200_000, [f"a{number}" for number in range(200_000)]], ids=["repeated", "unknown"]
)
def test_many_columns_are_refused_at_once(columns: list[str]) -> None:
    split = catch_refusal(
        FORMATS.read_invocation, json.dumps({"dataframe_split": {"columns": columns, "data": []}}).encode()
    )
    by_column = "{" + ",".join(f'"{name}":[]' for name in columns) + "}"
    tensors = [{"name": name, "datatype": "INT64", "shape": [0], "data": []} for name in columns]

    assert split.status == 422
    assert len(split.problems) == (4 if columns[0] == "pages" else MAX_PROBLEMS)
    assert split.problems[0].rule == ("must come once" if columns[0] == "pages" else "is not a column of this model")
    assert catch_refusal(FORMATS.read_invocation, f'{{"inputs":{by_column}}}'.encode()).status == 422
    assert catch_refusal(FORMATS.read_inference, json.dumps({"inputs": tensors}).encode()).status == 422


def test_inference_is_read_from_its_tensors() -> None:
    visitor = {"name": "visitor", "datatype": "UINT32", "shape": [1], "data": [7]}

    assert read_inference(inputs=TENSORS, id="a") == Requests(records=[RECORD], id="a")
    assert read_inference(inputs=[visitor, *TENSORS[::-1]]) == Requests(records=[RECORD], entities=[7])
    assert read_inference(inputs=TENSORS, outputs=[{"name": "scores"}]).outputs == ("scores",)
    assert read_inference(inputs=tensors(shape=[1, 1], data=[[3]])).records == [RECORD]
    assert read_inference(inputs=tensors(shape=[1, 1])).records == [RECORD]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datatype": "BYTES"}, "'pages' must have a datatype of INT64"),
        ({"datatype": "FP64", "data": [107.5]}, r"record 0: 'pages' must be an integer. Got 107\.5 instead"),
        ({"data": [-1]}, "record 0: 'pages' must be at least 0"),
        ({"data": [3.5]}, "record 0: 'pages' must be an integer"),
        ({"shape": [2]}, r"must have the shape \[1\]"),
        ({"shape": []}, r"must have the shape \[1\]"),
        ({"data": [[3]]}, "'pages' must be an integer"),
        ({"data": [3, 4]}, "columns must have one length"),
        ({"data": 7}, "'pages' must be a list"),
        ({"name": "colour"}, "'colour' is not a column"),
        ({"name": "plan", "datatype": "BYTES"}, "'plan' must come once"),
    ],
)
def test_tensor_against_the_contract_is_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_inference(inputs=tensors(**changes))
    assert caught.value.status == 422


def test_tensors_without_data_and_unknown_outputs_are_refused() -> None:
    bare = {name: value for name, value in TENSORS[0].items() if name != "data"}

    for body, message in (
        ({"inputs": [bare]}, "before binary data the header inference-header-content-length is required"),
        ({"inputs": TENSORS, "model_name": "other"}, "'model_name' must be 'visits'"),
        ({"inputs": TENSORS, "outputs": [{"name": "x"}]}, "predictions"),
    ):
        with pytest.raises(RequestError, match=message):
            read_inference(**body)
    assert catch_refusal(FORMATS.read_inference, b'{"inputs": 7}').status == 400


@pytest.mark.parametrize(
    "body",
    [
        '{"dataframe_records": [{"pages": 107.0, "seconds": 2.5, "plan": "free", "member": true, "visitor": 7.0}]}',
        '{"dataframe_records": [{"pages": 1.07e2, "seconds": 2.5, "plan": "free", "member": true, "visitor": 7}]}',
        '{"inputs": {"pages": 107.0, "seconds": 2.5, "plan": "free", "member": true, "visitor": 7}}',
        '{"inputs": {"pages": [107.0], "seconds": [2.5], "plan": ["free"], "member": [true], "visitor": [7.0]}}',
        '{"dataframe_split": {"columns": ["seconds", "pages", "plan", "member", "visitor"], '
        '"data": [[2.5, 107.0, "free", true, 7.0]]}}',
    ],
)
def test_whole_number_as_float_is_an_integer(body: str) -> None:
    requests = FORMATS.read_invocation(body.encode())

    assert (requests.records, requests.entities) == ([(107, 2.5, "free", True)], [7])
    assert type(requests.records[0][0]) is int


@pytest.mark.parametrize("pages", ["107.5", "9007199254740994.0", "1e300", "true", '"107.0"'])
def test_other_numbers_are_no_integers(pages: str) -> None:
    body = f'{{"inputs": [{{"pages": 107.0, "seconds": 1, "plan": "free", "member": true}}, {{"pages": {pages}}}]}}'
    error = catch_refusal(FORMATS.read_invocation, body.encode())

    assert [(problem.record, problem.field) for problem in error.problems if problem.rule == "must be an integer"] == [
        (1, "pages")
    ]


def test_whole_number_beside_an_infinity_is_refused() -> None:
    """Writing the number again must not turn the infinity into null, which the column accepts."""
    body = b'{"inputs": [{"pages": 107.0, "seconds": 1e999, "plan": "free", "member": true}]}'

    assert catch_refusal(FORMATS.read_invocation, body).problems[-1].field == "seconds"


def test_float_tensor_of_whole_numbers_is_read() -> None:
    read = read_inference(inputs=tensors(datatype="FP64", data=[3.0]), model_name="visits")

    assert read.records == [RECORD]


RECORD_TEXT = '"pages": 3, "seconds": 2.5, "plan": "free", "member": true'


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    ("body", "name"),
    [
        (f'{{"inputs": [{{{RECORD_TEXT}, "pages": 4}}]}}', "pages"),
        (f'{{"inputs": [{{{RECORD_TEXT}, "pages" : 4}}]}}', "pages"),
        (f'{{"inputs": [{{{RECORD_TEXT}, "p\\u0061ges": 4}}]}}', "pages"),
        (f'{{"inputs": [{{{RECORD_TEXT}, "visitor": null, "visitor": 4}}]}}', "visitor"),
        (f'{{"inputs": [{{{RECORD_TEXT}}}, {{{RECORD_TEXT}, "plan": "paid"}}]}}', "plan"),
        (f'{{"inputs": [], "inputs": [{{{RECORD_TEXT}}}]}}', "inputs"),
        (f'{{"inputs": [{{{RECORD_TEXT}}}], "params": {{"key": "a", "key": "b"}}}}', "key"),
        (f'{{"inputs": {{{RECORD_TEXT}, "member": false}}}}', "member"),
        (
            '{"dataframe_split": {"columns": [], "columns": ["pages", "seconds", "plan", "member"], '
            '"data": [[3, 2.5, "free", true]]}}',
            "columns",
        ),
        (
            '{"dataframe_split": {"index": [0], "index": [1], "columns": ["pages", "seconds", "plan", "member"], '
            '"data": [[3, 2.5, "free", true]]}}',
            "index",
        ),
        (json.dumps({"inputs": TENSORS}).replace('"shape"', '"name": "pages", "shape"', 1), "name"),
        (json.dumps({"inputs": TENSORS, "id": "a"}).replace('"id"', '"id": "b", "id"', 1), "id"),
    ],
)
def test_repeated_name_in_an_object_is_refused(body: str, name: str) -> None:
    read = FORMATS.read_inference if "datatype" in body else FORMATS.read_invocation
    error = catch_refusal(read, body.encode())

    assert (error.status, error.problems) == (422, [RequestProblem(rule="must come once in its object", field=name)])


@pytest.mark.fault("R15")
@pytest.mark.parametrize(
    ("padding", "rule"),
    [(0, "has no NaN and no Infinity"), (wire_formats.MAX_EXPLAINED, r"malformed: invalid character \(byte 1048599\)")],
)
def test_long_malformed_body_is_read_once(padding: int, rule: str) -> None:
    body = b'{"inputs": [{"pages": %b NaN}]}' % (b" " * padding)

    error = catch_refusal(FORMATS.read_invocation, body)

    assert error.status == 400
    assert re.search(rule, error.problems[0].rule)


def test_usual_bodies_are_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_platform.serving.http.wire_formats.json", None)
    for body in (
        {"dataframe_records": [ROW, {**ROW, "visitor": 7}]},
        {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())]}},
        {"dataframe_split": {"index": [0], "columns": list(ROW), "data": [list(ROW.values())]}},
        {"inputs": {name: [value] for name, value in ROW.items()}, "params": {"key": "a"}},
    ):
        assert read_invocation(body).records[0] == RECORD
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    parameters = {"binary_data_output": True}
    read = read_inference(id="a", model_name="visits", inputs=TENSORS, parameters=parameters, outputs=outputs)
    assert read.records == [RECORD]
    note = Field(name="note", kind="str", dtype="str")
    timed = Formats(replace(CONTRACT, features=(note,))).read_invocation(b'{"inputs": [{"note": "12:30:00"}]}')
    assert timed.records == [("12:30:00",)]


def test_bodies_with_uncounted_names_are_read() -> None:
    optional = replace(
        CONTRACT,
        features=(*CONTRACT.features, Field(name="note", kind="str", dtype="str", nullable=True, required=False)),
    )
    formats = Formats(optional)
    for note in (None, 'a ": b', "tab\t:", "x :", "\u00e9"):
        read = formats.read_invocation(
            json.dumps({"inputs": [ROW, {**ROW, "note": note}, {**ROW, "visitor": None}]}).encode()
        )
        assert [record[-1] for record in read.records] == [None, note, None]
    body = '{"inputs" : [{"pages"\t: 3, "seconds": null, "plan": "free", "member": true}], "params": null}'
    assert FORMATS.read_invocation(body.encode()).records == [(3, None, "free", True)]


@pytest.mark.fault("R25")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'\xef\xbb\xbf{"inputs": []}', "byte order mark"),
        ('{"inputs": []}'.encode("utf-16"), "UTF-16 or UTF-32"),
        ('{"inputs": []}'.encode("utf-16-le"), "UTF-16 or UTF-32"),
        ('{"inputs": []}'.encode("utf-32-be"), "UTF-16 or UTF-32"),
    ],
)
def test_other_encoding_of_body_is_named(body: bytes, message: str) -> None:
    for read in (FORMATS.read_invocation, FORMATS.read_inference):
        error = catch_refusal(read, body)
        assert (error.status, message in str(error)) == (400, True), str(error)
    for body in (b'{"inputs": [{"plan": "\xe9"}]}', b'{"inputs": [], "params": {"key": "\xe9"}}'):
        assert "the byte 0xe9 is not UTF-8" in str(catch_refusal(FORMATS.read_invocation, body))
    digits = b'{"inputs": [{"pages": %s}]}' % (b"9" * 5_000)
    assert "an integer has more than 4,300 digits" in str(catch_refusal(FORMATS.read_invocation, digits))


@pytest.mark.fault("R25")
@pytest.mark.parametrize(
    "value",
    [r'"\ud800 and more text"', r'"\udc00\ud800 and more text"', "1" + "0" * 400, "1" + "0" * 5_000, "-1e400", "[[]]"],
)
def test_odd_values_anywhere_are_refused(value: str) -> None:
    bodies = [
        f'{{"inputs": [{{"plan": {value}}}]}}',
        f'{{"inputs": [{{"visitor": {value}}}]}}',
        f'{{"inputs": [], "params": {{"key": {value}}}}}',
        f'{{"inputs": {{"plan": {value}}}, "params": {{{value if value[0] == chr(34) else 0}: 1}}}}',
        f'{{"dataframe_split": {{"columns": [{value}], "data": [[1]]}}}}',
        f'{{"inputs": [{{"name": {value}, "shape": [1], "datatype": "INT64", "data": [1]}}], "id": {value}}}',
        f'{{"inputs": [], "outputs": [{{"name": {value}}}], "parameters": {{"key": {value}}}}}',
        f'{{"inputs": [{{"name": "pages", "shape": [{value}], "datatype": {value}, "data": [1]}}]}}',
    ]
    for body in bodies:
        for read in (FORMATS.read_invocation, FORMATS.read_inference):
            assert catch_refusal(read, body.encode()).status in {400, 422}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(list(ROW))),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "columns", "data", "key"]), inner)
    ),
    max_leaves=8,
)
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances", "params", "id", "parameters", "outputs")


@given(st.dictionaries(st.sampled_from(FORMS), JSON, max_size=3), st.binary(max_size=3))
@settings(max_examples=200, deadline=None)
@pytest.mark.fault("R1")
def test_any_body_is_read_or_refused(body: dict[str, Any], rubbish: bytes) -> None:
    for read in (FORMATS.read_invocation, FORMATS.read_inference):
        for data in (json.dumps(body).encode(), json.dumps(body).encode() + rubbish, rubbish):
            status = 200
            try:
                read(data)
            except RequestError as error:
                status = error.status
                json.loads(error_answer(error))
            assert status in {200, 400, 413, 422}


# Responses


def test_invocation_response_has_predictions_and_scores() -> None:
    regression = RequestContract(model="m", task="regression", features=(), entity=CONTRACT.entity)

    assert json.loads(invocation_answer(CONTRACT, Answers([0.25], [0]))) == {"predictions": [0], "scores": [0.25]}
    assert json.loads(invocation_answer(regression, Answers([1.5], [1.5]))) == {"predictions": [1.5]}


def test_inference_response_has_tensors() -> None:
    kinds = RequestContract(
        model="kinds", task="multiclass", features=CONTRACT.features, entity=CONTRACT.entity, classes=("a", "b", "c")
    )
    answers = Answers([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], ["c", "a"])

    response = json.loads(inference_answer(kinds, read_inference(inputs=TENSORS, id="x"), answers, version=4))

    assert response == {
        "model_name": "kinds",
        "model_version": "4",
        "id": "x",
        "outputs": [
            {"name": "predictions", "datatype": "BYTES", "shape": [2], "data": ["c", "a"]},
            {"name": "scores", "datatype": "FP64", "shape": [2, 3], "data": [0.2, 0.3, 0.5, 1.0, 0.0, 0.0]},
        ],
    }
    scores_only = read_inference(inputs=TENSORS, outputs=[{"name": "scores"}])
    (scores,) = json.loads(inference_answer(CONTRACT, scores_only, Answers([0.5], [1]), version=1))["outputs"]
    assert scores == {"name": "scores", "datatype": "FP64", "shape": [1], "data": [0.5]}


def test_metadata_have_every_tensor() -> None:
    document = metadata(CONTRACT, [3, 4])

    assert (document["name"], document["versions"]) == ("visits", ["3", "4"])
    assert [(tensor["name"], tensor["datatype"]) for tensor in document["inputs"]] == [
        ("pages", "INT64"),
        ("seconds", "FP64"),
        ("plan", "BYTES"),
        ("member", "BOOL"),
    ]
    assert [(tensor["name"], tensor["datatype"]) for tensor in document["outputs"]] == [
        ("predictions", "INT64"),
        ("scores", "FP64"),
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """Start a server on loopback that predicts 1 for more than ten pages; yield its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests = FORMATS.read_invocation(self.rfile.read(int(self.headers["Content-Length"])))
            answers = Answers(
                [record[0] / 100 for record in requests.records], [int(record[0] > 10) for record in requests.records]
            )
            body = invocation_answer(CONTRACT, answers)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", served.server_port
        finally:
            served.shutdown()
            thread.join()


def test_mlflows_client_reads_the_responses(server: tuple[str, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow's own type hints warn at its import
        from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    client: Any = ScoringServerClient(*server)  # type: ignore[no-untyped-call]
    frame = pd.DataFrame([ROW, {**ROW, "pages": 20}])

    assert client.invoke(frame).get_predictions()[0].tolist() == [0, 1]
    assert client.invoke([ROW]).get_predictions("ndarray").tolist() == [0]
    assert client.invoke([ROW], params={"key": "a"})["scores"] == [0.03]
