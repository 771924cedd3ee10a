"""Calls a server with the clients of Triton and KServe, and writes their predictions as JSON.

``python inference_clients.py HOST:PORT MODEL`` runs in an environment of its own, with the packages of
``inference_clients.lock``: they need other versions of the platform's packages.
"""

import asyncio
import json
import sys
from typing import Any

import kserve
import numpy as np
import tritonclient.http

PAGES, SECONDS, PLANS = np.array([40, 3]), np.array([3.0, 1.5]), np.array(["paid", "free"], np.object_)


def call_triton(address: str, model: str, *, binary: bool, **options: Any) -> list[int]:
    """Return the predictions that Triton's client reads."""
    client = tritonclient.http.InferenceServerClient(address)
    inputs = []
    for name, kind, values in (("pages", "INT64", PAGES), ("seconds", "FP64", SECONDS), ("plan", "BYTES", PLANS)):
        tensor = tritonclient.http.InferInput(name, [2], kind)
        inputs.append(tensor.set_data_from_numpy(values, binary_data=binary))
    assert client.is_server_live()
    assert client.is_model_ready(model)
    assert client.get_model_metadata(model)["name"] == model
    return list(map(int, client.infer(model, inputs, **options).as_numpy("predictions")))


async def call_kserve(address: str, model: str, *, binary: bool) -> list[int]:
    """Return the predictions that KServe's client reads."""
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    inputs = []
    for name, kind, values in (("pages", "FP64", PAGES * 1.0), ("seconds", "FP64", SECONDS), ("plan", "BYTES", PLANS)):
        tensor = kserve.InferInput(name, [2], kind)
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    assert await client.is_server_live(f"http://{address}")
    assert await client.is_model_ready(f"http://{address}", model)
    request = kserve.InferRequest(model, inputs)
    response = await client.infer(f"http://{address}", request, model_name=model)
    predictions = next(output for output in response.outputs if output.name == "predictions")
    return list(map(int, predictions.data))


def main(address: str, model: str) -> None:
    """Write the predictions of each client and form."""
    results = {
        "triton, binary": call_triton(address, model, binary=True),
        "triton, JSON": call_triton(address, model, binary=False),
        "triton, gzip": call_triton(address, model, binary=True, request_compression_algorithm="gzip"),
        "triton, deflate": call_triton(address, model, binary=True, request_compression_algorithm="deflate"),
        "kserve, binary": asyncio.run(call_kserve(address, model, binary=True)),
        "kserve, JSON": asyncio.run(call_kserve(address, model, binary=False)),
    }
    sys.stdout.write(f"{json.dumps(results)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
