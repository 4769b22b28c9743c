"""What calls of models and of children share: the prompts of a batch, and what each got. Runs inside the sandbox."""

import _door
import _runner
from _rlm import text


class Answer(str):
    """What a model answered; `cut` is True where it was cut off, so that its end is missing."""

    __slots__ = ()
    cut = False


class _CutAnswer(Answer):
    __slots__ = ()
    cut = True


_CutAnswer.__name__ = _CutAnswer.__qualname__ = "Answer"


def listed(name, values):
    """Return the items of an argument that must be a list, or another iterable of them.

    A text would be taken for a list of its letters, and is refused.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | dict) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a list, not {type(values).__name__}")
    return list(values)


def sendable(name, value):
    """Return a text that can be sent: a str, and no half of a character in it."""
    value = str(text(name, value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds half a surrogate pair, at {error.start}") from None
    return value


class Slots:
    """The slots of a batch. What cannot be sent has its error in its own slot, and the others are sent."""

    def __init__(self, count, return_exceptions):
        self._return_exceptions = return_exceptions
        self._values = [None] * count
        self._sent = []

    def fit(self, check, items):
        """Return what `check` makes of the items, each the arguments of a call, without those that it refuses."""
        fit = []
        for place, item in enumerate(items):
            try:
                fit.append(check(*item))
            except (TypeError, ValueError) as error:
                self._values[place] = self._failed(error)
            else:
                self._sent.append(place)
        return fit

    def values(self, replies):
        """Return the values of all slots, given the replies to what was sent."""
        for place, reply in zip(self._sent, replies, strict=True):
            self._values[place] = self._failed(_door.failure(reply["error"])) if "error" in reply else answered(reply)
        return self._values

    def _failed(self, error):
        return error if self._return_exceptions else Answer(f"Error: {error}")


def only(replies):
    """Return the value of the one slot of a reply, or raise what it says."""
    if "error" in replies[0]:
        raise _door.failure(replies[0]["error"])
    return answered(replies[0])


def answered(reply):
    """Return the value of a slot that has one, and print what is noted there."""
    if reply.get("note"):
        print(f"[{reply['note']}]")
    return (_CutAnswer if reply.get("cut") else Answer)(reply["ok"])


def each(name, value, count):
    """Return an argument for every item of a batch: one for all of them, or a list with one for each."""
    if value is None or isinstance(value, str):
        return [value] * count
    values = listed(name, value)
    if len(values) != count:
        raise ValueError(f"{count} prompts but {len(values)} in {name}")
    return values


def model_named(value):
    """Return the name of a model, or None."""
    return None if value is None else sendable("model", value)


_runner.internal.add("<_slots>")
