"""Has numpy count in 64 bits as soon as it is imported, and pandas take `int` for 64 bits. Runs inside the sandbox."""

import functools
import sys

import _numbers
import _runner


def widen_numpy(np):
    """Make numpy count in 64 bits for the program."""
    import numpy._core.arrayprint
    import numpy.linalg
    import numpy.random  # noqa: F401

    _numbers.np, _numbers._array, _numbers._int32 = np, np.array, np.dtype(np.int32)
    plain = np._core.arrayprint._typelessdata
    plain[plain.index(np.int_)] = np.int64
    for name, kind in (("int", np.int64), ("int_", np.int64), ("uint", np.uint64)):
        np._core.sctypeDict[name] = kind
        if hasattr(np, name):
            setattr(np, name, kind)
    _numbers.replace(np.ndarray, _numbers.METHODS)
    _numbers.replace(np.ndarray, ["view"], _numbers.retyped)
    _numbers.replace(np.generic, ["astype"])
    for generator in (np.random.RandomState, np.random.Generator):
        _numbers.replace(generator, (*_numbers.DRAWS, *_numbers.DRAWN), _numbers.drawing)
    sys._clear_internal_caches()
    for index in (np.mgrid, np.ogrid, np.r_, np.c_):
        index.__class__.__getitem__ = _numbers.of_slices(index.__class__.__getitem__)
    for kind, method in ((np.matrix, "__new__"), (np.ma.MaskedArray, "__new__"), (np.iinfo, "__init__")):
        setattr(kind, method, _numbers.of_first(getattr(kind, method)))
    for method in ("__init__", "__call__"):
        setattr(np.poly1d, method, _numbers.of_first(getattr(np.poly1d, method)))
    np.vectorize._vectorize_call = _numbers.of_function(np.vectorize._vectorize_call)
    for module in (np, np.linalg, np.random, np.char, np.strings):
        for name in sorted(set(module.__all__) - _numbers.STORED):
            value = getattr(module, name)
            if isinstance(value, np.ufunc) and name in _numbers.UFUNCS:
                setattr(module, name, _numbers.Ufunc(value))
            elif module is np.random and getattr(value, "__self__", None) is not None:
                setattr(module, name, getattr(value.__self__, value.__name__, value))
            elif hasattr(value, "__name__") and callable(value) and not isinstance(value, (type, np.ufunc)):
                setattr(module, name, _numbers.wide(value))


def widen_pandas(pandas):
    """Make `int` mean 64 bits where pandas takes a type."""
    from pandas.core.dtypes import common

    original = common.pandas_dtype

    @functools.wraps(original)
    def pandas_dtype(dtype):
        return original(_numbers.typed(dtype))

    for name, module in list(sys.modules.items()):
        if name.startswith("pandas.") and getattr(module, "pandas_dtype", None) is original:
            module.pandas_dtype = pandas_dtype
    for kind in (pandas.Series, pandas.Index, pandas.DataFrame):
        kind.to_numpy = _numbers.retyped(kind.to_numpy)
    for holder in (pandas.Series, pandas.Index, pandas):
        for name in ("argsort", "searchsorted", "factorize", "get_indexer"):
            if hasattr(holder, name):
                setattr(holder, name, _numbers.counting(getattr(holder, name)))


WIDENED = {"numpy": widen_numpy, "pandas": widen_pandas}


class Importer:
    """Finds numpy and pandas as the others do, and widens them once they are loaded."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in WIDENED:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not cls)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader, WIDENED[name])
        return spec


class Loader:
    """Loads a module as its own loader does, and then calls a function with it."""

    def __init__(self, loader, then):
        self._loader, self._then = loader, then

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)


sys.meta_path.insert(0, Importer)
_runner.internal.add("<_imports>")
