"""Documents the host has: each becomes a string when it is used. Runs inside the sandbox."""

import sys
from collections.abc import Sequence

import _door
import _host
import _runner

_samples = ("a", "\xe9", "\u4e2d", "\U0001f600")
_templates = ["".join([sample] * 7) for sample in _samples]
"""A string of each form: the host makes the headers of others from them."""

_addresses = [id(template) for template in _templates]
_box = [None]

AHEAD = 32
"""The most small documents that a loop asks for at once."""

LOCATED_FROM = 1 << 16
"""Characters from which on it is worth asking whether a string is part of a document."""


def fetch(corpus, document, count=1):
    """Return strings: the document of this number, and, if all are small, up to `count` documents from it on."""
    request = _door._encode(
        {"op": "sandbox.document", "corpus": corpus, "document": document, "count": count, "templates": _addresses,
         "box": id(_box)}
    )  # fmt: skip
    reply = _host.call(request.encode())
    end = reply.find(b"\n")
    header = _door.value(_door._decode((reply if end < 0 else reply[:end]).decode()))
    if header is None:
        documents = [_box[0]]
        _box[0] = None
        return documents
    documents, at, view = [], end + 1, memoryview(reply)
    for codec, size in header:
        documents.append(str(view[at : at + size], codec))
        at += size
    return documents


class Documents(Sequence):
    """The documents of a context: an immutable sequence of strings that reads a document when it is used."""

    __slots__ = ("_corpus", "_numbers")

    def __init__(self, corpus, numbers):
        self._corpus, self._numbers = corpus, numbers

    def __len__(self):
        return len(self._numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Documents(self._corpus, self._numbers[index])
        if isinstance(index, str):
            return fetch(self._corpus, self._place(index))[0]
        return fetch(self._corpus, self._numbers[index])[0]

    def __iter__(self):
        at, count, numbers = 0, 1, self._numbers
        while at < len(numbers):
            found = fetch(self._corpus, numbers[at], min(count, len(numbers) - at) if numbers.step == 1 else 1)
            at += len(found)
            count = min(2 * count, AHEAD)
            yield from found
            del found

    def __repr__(self):
        return f"<{len(self._numbers):,} documents>"

    @property
    def names(self):
        """The documents' names, in their order; empty where they have none."""
        known = _all_names(self._corpus)
        return [known[number] for number in self._numbers]

    def _place(self, name):
        """Return the number of the document of this name: the first, where several have it."""
        if self._corpus not in _places:
            known = _all_names(self._corpus)
            _places[self._corpus] = {known[number]: number for number in reversed(range(len(known)))}
        number = _places[self._corpus].get(name) if name else None
        if number is None or number not in self._numbers:
            raise KeyError(f"no document has the name {name[:60]!r}; context.names lists those there are")
        return number

    def search(self, pattern, limit=100, **options):
        """Find where a pattern (RE2's syntax) matches, on the host: see `search`."""
        return _search[0](pattern, self, limit, **options)


_counts = {}
"""Of each corpus, how many documents it has: the names are the one after them."""

_names, _places = {}, {}


def _all_names(corpus):
    if corpus not in _names:
        count = _counts[corpus]
        lines = fetch(corpus, count)[0].split("\n")
        _names[corpus] = lines if len(lines) == count else [""] * count  # a part of a corpus has no names
    return _names[corpus]


def name_of(number):
    """Return the name of a document of the context, by its number; empty where it has none."""
    context = _runner.reserved.get("context")
    return _all_names(context._corpus)[number] if isinstance(context, Documents) else ""


_search = [None]
"""What finds patterns, where the host can."""


def attach(_text, name, corpus, count, kind, proof):
    """Make `name` the text, or the documents, of a corpus. Return `proof` once it is."""
    corpus, count = int(corpus), int(count)
    _counts[corpus] = count
    try:
        value = fetch(corpus, 0)[0] if kind == "TEXT" else Documents(corpus, range(count))
    except Exception as error:
        _runner.report(_runner.describe(error))
        return 0
    _runner.namespace[name] = _runner.reserved[name] = value
    return int(proof)


def located(text):
    """Return what the host finds a long string to be part of, or None: {corpus, document, start, end}."""
    if len(text) < LOCATED_FROM:
        return None
    return _door.call("sandbox.locate", at=id(text), templates=_addresses)


_runner.commands["attach"] = attach
_runner.internal.add("<_documents>")
_runner.first_modules.update(sys.modules)
