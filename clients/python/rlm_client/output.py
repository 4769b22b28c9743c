"""What the command writes: answers and JSON to stdout, what happens to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TypeVar

import click
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text

from rlm_client.sanitize import sanitize, sanitize_line

Command = TypeVar("Command", bound=Callable[..., object])

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout, nothing drawn.")


def print_json(message: Message | dict[str, object]) -> None:
    """Write one JSON object as a line."""
    if isinstance(message, Message):
        message = json_format.MessageToDict(message, preserving_proto_field_name=True)
    write(json.dumps(message) + "\n")  # escapes all that is not ASCII


def write(text: str, err: bool = False) -> None:
    """Write model or guest text: neutralised, except on a stdout that is a file or a pipe, which gets it exactly."""
    stream = sys.stderr if err else sys.stdout
    shown = sanitize(text) if err or stream.isatty() else text
    stream.buffer.write(shown.encode("utf-8"))
    stream.buffer.flush()


def say(console: Console, text: str, style: str = "dim") -> None:
    """Write a line of the command's own, whatever its text holds."""
    console.print(Text(sanitize_line(text, 2000), style=style))
