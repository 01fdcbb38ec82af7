"""An ONNX file of a hypersolver as an HTTP service, which solves the rows of waiting requests as one batch.

    pip install starlette "uvicorn[standard]" onnxruntime
    python examples/serving/service.py fast.onnx 8000

``POST /`` takes the bytes of float32 rows, and answers with those of their outputs. In Python:
``np.frombuffer(requests.post("http://127.0.0.1:8000", data=X.tobytes()).content, np.float32)``. A body that is no
number of rows is refused with status 400, and a request beyond 1,000 at a time with 503. The service listens on this
machine alone: a proxy before it brings TLS, access control and a limit on the size of bodies.
"""

import asyncio
import sys

import numpy as np


class Batcher:
    """Run the rows of all requests that came while the batch before them ran as one batch."""

    def __init__(self, run):
        self.run, self.waiting, self.turn = run, {}, asyncio.Lock()

    async def __call__(self, rows):
        answer = asyncio.get_running_loop().create_future()
        self.waiting[answer] = rows
        async with self.turn:
            if answer in self.waiting:  # no batch has taken it: this request is the first of the next one
                await self.run_batch()
        return await answer

    async def run_batch(self):
        batch, self.waiting = self.waiting, {}
        try:
            outputs = await asyncio.to_thread(self.run, np.concatenate(list(batch.values())))
            results = np.split(outputs, np.cumsum([len(rows) for rows in batch.values()])[:-1])
        except BaseException as error:  # all of the batch are told, and those after them are served
            results = [error] * len(batch)
        for answer, result in zip(batch, results, strict=True):
            if not answer.done():  # a client that has gone away
                (answer.set_exception if isinstance(result, BaseException) else answer.set_result)(result)


def serve(run, shape, port):
    """Serve a function of rows, each of a shape."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response

    batcher, size = Batcher(run), 4 * int(np.prod(shape))

    async def answer(request):
        body = await request.body()
        if not body or len(body) % size:
            return Response(f"the body must be float32 rows of shape {(*shape,)}: {size} bytes each", 400)
        return Response((await batcher(np.frombuffer(body, np.float32).reshape(-1, *shape))).tobytes())

    app = Starlette()
    app.add_route("/", answer, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning", limit_concurrency=1000)


if __name__ == "__main__":
    import onnxruntime

    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    serve(lambda X: session.run(None, {"X": X})[-1], session.get_inputs()[0].shape[1:], int(sys.argv[2]))
