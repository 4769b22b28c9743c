"""Whole numbers come out of numpy in the sandbox as they do outside: in 64 bits where the program named no others."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sandbox.vm.image import Loaded
from tests.sandbox.repl import Repl, Repls

PROGRAMS = (Path(__file__).parent / "integer_programs.txt").read_text().strip().split("\n\n")
"""Code that counts, as models write it. An empty line is between two programs, and `np` is numpy."""

MEMORY = 384 << 20


@pytest.fixture(scope="module")
def data(loaded: Loaded) -> Iterator[Repl]:
    """A session of the image that has numpy and pandas."""
    repls = Repls(loaded)
    repl = repls("data", memory_bytes=MEMORY)
    repl.show("import numpy as np, pandas as pd, scipy")
    yield repl
    repls.close()


def outside(program: str) -> str:
    """What a program prints with this machine's numpy."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {"np": np, "__name__": "__main__"})
    return printed.getvalue().removesuffix("\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_counts_prints_what_it_prints_outside(data: Repl, program: str) -> None:
    assert data.show(program) == outside(program)


def test_it_is_so_too_where_numpy_is_first_imported_by_a_turn(start: Repls) -> None:
    repl = start("core", memory_bytes=MEMORY)
    repl.show("import numpy as np")
    assert repl.show("print(np.array([2_000_000_000] * 2).sum(), repr(np.arange(2)))") == "4000000000 array([0, 1])"
    repl.show("import pandas as pd")
    assert repl.show("print(pd.Series(['3000000000']).astype(int).sum())") == "3000000000"


def test_it_is_so_too_in_functions_that_others_call_and_in_pools(data: Repl) -> None:
    data.show("from concurrent.futures import ThreadPoolExecutor\nimport asyncio, functools, pickle, copy")
    assert data.show("list(ThreadPoolExecutor(4).map(np.prod, [[100_000] * 2]))") == "[np.int64(10000000000)]"
    assert data.show("functools.reduce(np.multiply, [100_000] * 3)") == "np.int64(1000000000000000)"
    data.show("async def summed(values):\n    return np.sum(values)")
    assert data.show("await asyncio.gather(summed([2_000_000_000] * 2))") == "[np.int64(4000000000)]"
    assert data.show("copy.deepcopy(np.add) == np.add and pickle.loads(pickle.dumps(np.add)) is np.add") == "True"


PANDAS = {
    "pd.Series(['3000000000', '1']).astype(int).tolist()": "[3000000000, 1]",
    "pd.Series([3.0e9]).astype('int').sum()": "np.int64(3000000000)",
    "pd.Series([1, 2], dtype=int).dtype": "dtype('int64')",
    "df.astype({'v': int}).v.dtype": "dtype('int64')",
    "pd.read_csv(io.StringIO('a\\n3000000000'), dtype=int).a.sum()": "np.int64(3000000000)",
    "pd.read_csv(io.StringIO('a\\n3000000000'), dtype={'a': int}).a.sum()": "np.int64(3000000000)",
    "df.v.to_numpy(dtype=int).dtype": "dtype('int64')",
    "(df.v.astype(int) * 10**10).sum()": "np.int64(100000000000)",
    "df.groupby('k').w.sum().tolist()": "[4000000000, 2000000000, 2000000000]",
    "df.groupby('k').w.agg(np.sum).tolist()": "[4000000000, 2000000000, 2000000000]",
    "df.apply(np.sum).tolist()": "['abac', np.int64(10), np.int64(8000000000)]",
    "df.sort_values('v', ascending=False).v.tolist()": "[4, 3, 2, 1]",
    "df.iloc[df.v.values.argsort()[::-1]].v.tolist()": "[4, 3, 2, 1]",
    "df.iloc[np.argsort(-df.v.values)].v.tolist()": "[4, 3, 2, 1]",
    "df.iloc[np.argsort(df.v)].index.tolist()": "[0, 1, 2, 3]",
    "df.loc[np.nonzero(df.v.values > 2)[0]].v.tolist()": "[3, 4]",
    "df.loc[df.index.repeat(df.v)].shape": "(10, 3)",
    "np.repeat(df.v.values, df.v.values).sum()": "np.int64(30)",
    "df.merge(df, on='k').shape": "(6, 5)",
    "df.pivot_table(index='k', values='w', aggfunc='sum').w.max()": "np.int64(4000000000)",
    "pd.crosstab(df.k, df.v).values.sum()": "np.int64(4)",
    "pd.factorize(df.k)[0]": "array([0, 1, 0, 2])",
    "df.k.value_counts().to_dict()": "{'a': 2, 'b': 1, 'c': 1}",
    "df.v.searchsorted(3), pd.Index([1, 2]).get_indexer([2])": "(np.int64(2), array([1]))",
    "df.v.rolling(2).sum().sum(), df.v.cumsum().tolist()": "(np.float64(15.0), [1, 3, 6, 10])",
    "df.v.where(df.v > 2, 0).sum(), df.v.isin([1, 2]).sum()": "(np.int64(7), np.int64(2))",
    "pd.to_datetime(df.w, unit='s').dt.year.tolist()": "[2033, 2033, 2033, 2033]",
    "pd.DataFrame(np.arange(4).reshape(2, 2)).sum().tolist()": "[2, 4]",
    "df.v.astype(np.int32).dtype, df.v.astype('int32').to_numpy().dtype": "(dtype('int32'), dtype('int32'))",
}


@pytest.mark.parametrize("expression", PANDAS)
def test_pandas_works_and_takes_int_for_64_bits(data: Repl, expression: str) -> None:
    data.show("import io\ndf = pd.DataFrame({'k': list('abac'), 'v': [1, 2, 3, 4], 'w': [2_000_000_000] * 4})")
    assert data.show(expression) == PANDAS[expression]


def test_what_is_compiled_for_addresses_of_32_bits_works(start: Repls) -> None:
    repl = start("data", memory_bytes=900 << 20, turn_seconds=60.0)
    repl.show("import numpy as np, scipy.sparse, scipy.spatial\nfrom sklearn.cluster import KMeans")
    repl.show("points = np.random.RandomState(0).rand(30, 3)")
    assert repl.show("scipy.spatial.cKDTree(points).query(points[:3])[1].tolist()") == "[0, 1, 2]"
    assert repl.show("scipy.sparse.csr_array(np.eye(3, dtype=int) * 3_000_000_000).sum()") == "np.int64(9000000000)"
    assert repl.show("scipy.sparse.csr_array(points > 0.5)[points[:, 0].argsort()].nnz") == "45"
    assert repl.show("len(KMeans(2, n_init=1, random_state=0).fit(points).labels_)") == "30"


def test_what_still_has_32_bits_is_what_the_note_says(data: Repl) -> None:
    assert data.show("np.dtype(int).itemsize, np.dtype(np.intp).itemsize") == "(4, 4)"
    assert data.show("(np.array([True]) * 5).dtype.itemsize, np.array([1]).dtype == int") == "(4, False)"


def test_an_error_shows_the_programs_own_lines_only(data: Repl) -> None:
    turn = data.run("np.dot([1, 2], [3])")
    assert turn.error is not None
    assert turn.error.type == "ValueError"
    assert "_numbers" not in turn.error.traceback
