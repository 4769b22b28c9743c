"""Makes a started interpreter fit to be a golden image. Runs inside the sandbox, once, when an image is built."""

import gc
import itertools
import linecache
import sys
import types

import _door
import _runner

TOLD_AT_ONCE = 10_000
"""Objects, in one request: requests are bounded in what they hold."""

roots = []
filling = []


def settle(_text):
    """Collect garbage, and freeze what is left, so that the collector never writes to pages that sessions share."""
    linecache.clearcache()
    _runner.sources.clear()
    for forget in _runner.forgetting:
        forget()
    gc.collect()
    roots.extend(gc.get_objects())
    fill_holes()  # also that which listing them has left
    gc.freeze()


def fill_holes():
    """Use up free memory between objects. A session's own objects then lie together, in pages without any others."""
    top, header = id(bytes(4 << 20)), sys.getsizeof(b"")
    for size in (*(1 << n for n in range(16, 9, -1)), *range(512, 20, -8)):
        while id(made := bytes(size - header)) < top:
            filling.append(made)
    while id(made := object()) < top:
        filling.append(made)


def tell(_text):
    """Send the host the addresses of every object and of its type. To be called after `settle`."""
    objects = _objects()
    while found := [[id(thing), id(type(thing))] for thing in itertools.islice(objects, TOLD_AT_ONCE)]:
        _door.call("sandbox.objects", found=found)


def _objects():
    """Yield once every object that can be reached from the modules and from the objects that the collector knew."""
    waiting = [roots, sys.modules, *roots]
    seen = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        waiting.append(type(thing))
        waiting += gc.get_referents(thing)
        waiting += _unlisted(thing)


def _unlisted(thing):
    """Return objects that `thing` refers to but does not show the collector. None is created only to be returned."""
    if isinstance(thing, types.CodeType):
        held = (thing.co_consts, thing.co_names, thing.co_linetable, thing.co_exceptiontable)
        named = (thing.co_filename, thing.co_name, thing.co_qualname)
        return (*held, *named, *thing.co_varnames, *thing.co_freevars, *thing.co_cellvars)
    if isinstance(thing, type):
        return (*gc.get_referents(thing.__dict__), thing.__mro__, thing.__bases__)
    return ()


_runner.commands["settle"], _runner.commands["tell"] = settle, tell
