"""Drives the reference implementation (PyPI `rlms`), which runs the model's code in its own process."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Any

from benchmarks.drivers.serving import Measure, expect, serve
from benchmarks.loop.endpoint import Log, told
from benchmarks.loop.gaps import Runs

os.environ["NO_PROXY"] = "*"  # the endpoint is on loopback

from rlm import RLM  # type: ignore[attr-defined]  # the peer's package, not the protocol's of the same name


class Reference(Runs):
    """Asks the scripted endpoint with everything at its defaults."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _run(self, model: str, sub_model: str = "quick") -> Log:
        """Make a run and return what the endpoint saw of it."""
        told(self._url)
        rlm = RLM(
            backend="openai",
            backend_kwargs=self._at(model),
            other_backends=["openai"],
            other_backend_kwargs=[self._at(sub_model)],
        )
        expect(rlm.completion("a context", root_prompt="What?").response, "done")
        return told(self._url)

    def _at(self, model: str) -> dict[str, Any]:
        return {"model_name": model, "api_key": "none", "base_url": f"{self._url}/v1"}

    @property
    def measures(self) -> dict[str, Measure]:
        return {"turn": self.turn, "subcall": self.subcall, "batch": self.batch, "create": self.create}


if __name__ == "__main__":
    serve(f"rlms {version('rlms')}", Reference(sys.argv[1]).measures)
