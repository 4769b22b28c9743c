"""Code that goes on for ever, or nearly: in Python, and in whatever is written in C that can be made to work long.

Each kind must be stoppable at any moment. A test stops each of them, and the benchmark says how long that takes.
"""

# ruff: noqa: E501 - a runaway is a line

from __future__ import annotations

from dataclasses import dataclass

GOING = "going"
"""What is printed once a runaway is under way."""


@dataclass(frozen=True, slots=True)
class Runaway:
    """`first` makes ready what `code` then works on without end."""

    code: str
    first: str = ""
    image: str = "core"

    @property
    def turn(self) -> str:
        """The whole turn."""
        return f"{self.first}\nprint({GOING!r}, flush=True)\n{self.code}\n"


def _again(code: str, first: str = "", image: str = "core") -> Runaway:
    """Make a runaway of a call that takes long, again and again."""
    return Runaway(f"while True: {code}", first, image)


_DIGITS = "import sys; sys.set_int_max_str_digits(0)"
_ARRAYS = "import numpy; numbers = numpy.random.rand(2_000_000)"
_FRAME = (
    "import numpy, pandas\n"
    "frame = pandas.DataFrame({'key': numpy.random.randint(0, 300_000, 1_000_000), 'value': range(1_000_000)})"
)
_XML = "import lxml.etree\ndata = '<a>' + '<b c=\"d\">e</b>' * 500_000 + '</a>'"
_WORDS = "words = [f'word {number * 7919 % 1_000_003}' for number in range(300_000)]"

RUNAWAYS = {
    # Python
    "a loop": Runaway("while True: pass"),
    "a loop that catches all": Runaway(
        "while True:\n    try:\n        while True: len([])\n    except BaseException: pass"
    ),
    "exceptions": Runaway("while True:\n    try: raise ValueError\n    except ValueError: pass"),
    "generators": Runaway("def forth():\n    while True: yield 1\ndef back():\n    yield from forth()\nfor _ in back(): pass"),
    "a dict that grows": Runaway("for number in __import__('itertools').count(): kept[number % 3_000_000] = number", "kept = {}"),
    "a list that grows": Runaway("while True:\n    kept = []\n    while len(kept) < 5_000_000: kept.append(len(kept))"),
    "recursion": Runaway("def f(n): return f(n - 1) + f(n - 2) if n > 1 else 1\nf(200)"),
    "deep recursion": Runaway(
        "def f(n): return f(n + 1)\nwhile True:\n    try: f(0)\n    except RecursionError: pass",
        "import sys; sys.setrecursionlimit(3000)",
    ),
    "coroutines": Runaway("import asyncio\nasync def f():\n    while True: await asyncio.sleep(0)\nasyncio.run(f())"),
    "methods called by C": Runaway("sorted(range(10**6), key=F)", "class F:\n    def __init__(self, n):\n        while True: pass"),
    "a finalizer": Runaway("F()", "class F:\n    def __del__(self):\n        while True: pass"),
    "formatting": _again("['%s %r %d %.3f' % (n, n, n, n) + f'{n:>20}{n!r:<9}' for n in range(100_000)]"),
    # numbers
    "a power": Runaway("10 ** 10 ** 8"),
    "a power modulo": Runaway("pow(3, 1 << 200_000, (1 << 200_000) - 1)"),
    "a product": _again("number * number", "number = 7 ** 500_000"),
    "a division": _again("number // (number >> 1_000_000)", "number = (1 << 2_000_000) - 1"),
    "an integer from text": Runaway("int(text)", f"{_DIGITS}; text = '9' * 10_000_000"),
    "an integer to text": Runaway("str(1 << 100_000_000)", _DIGITS),
    "a sum": Runaway("sum(range(10**11))"),
    "a factorial": Runaway("__import__('math').factorial(10**7)"),
    "binomials": Runaway("__import__('math').comb(10**8, 5 * 10**7)"),
    "greatest divisors": _again("math.gcd(a, b)", "import math; a, b = 3 ** 500_000, 7 ** 400_000"),
    "decimals": Runaway(
        "decimal.Decimal(2) ** decimal.Decimal('0.5') + decimal.Decimal(3).ln().exp()",
        "import decimal; decimal.getcontext().prec = 200_000",
    ),
    "fractions": Runaway("sum(Fraction(1, n) for n in range(1, 10**6))", "from fractions import Fraction"),
    "statistics": _again("statistics.linear_regression(data, data), statistics.quantiles(data)", "import statistics; data = [n * 0.1 for n in range(200_000)]"),
    "random samples": _again("random.sample(range(10**9), 10**6), random.shuffle(list(range(10**6)))", "import random"),
    # texts and bytes
    "a regular expression": Runaway("__import__('re').match('(a+)+$', 'a' * 60 + 'b')"),
    "another regular expression": Runaway("__import__('regex').match('(a|aa)+$', 'a' * 80 + 'b')"),
    "a regular expression through a long text": _again("re.findall('a[^b]*?c', text), re.sub('x', 'yy', text)", "import re; text = 'xay' * 3_000_000"),
    "a search": _again("('a' * 5000 + 'b' + 'a' * 5000) in text", "text = 'a' * 20_000_000"),
    "counting": _again("text.count('ab')", "text = 'aabb' * 12_500_000"),
    "replacing": _again("text.replace('a', 'b'), text.replace('ab', 'c')", "text = 'ab' * 10_000_000"),
    "translating": _again("text.translate(table)", "text = 'abc' * 5_000_000; table = {97: 'xy', 98: None}"),
    "splitting": _again("text.split(), text.splitlines(), text.partition('zz')", "text = 'word word\\n' * 1_000_000"),
    "joining": _again("b''.join(parts), ''.join(texts)", "parts = [b'12345678'] * 3_000_000; texts = ['abc'] * 3_000_000"),
    "upper and lower case": _again("text.upper().lower().casefold()", "text = 'ÄöÜß' * 3_000_000"),
    "encoding": _again("text.encode('utf-8').decode('utf-8'), text.encode('utf-16')", "text = 'aé中😀' * 3_000_000"),
    "comparing": _again("one == other, one < other", "one = 'a' * 50_000_000; other = one[:-1] + 'b'"),
    "normal forms": _again("unicodedata.normalize('NFKD', text)", "import unicodedata; text = 'ÄöÜﬁ' * 1_000_000"),
    "copying memory": _again("copy[:] = block", "block = bytearray(64 << 20); copy = bytearray(64 << 20)"),
    "filling memory": _again("bytes(150 << 20), bytearray(b'x') * (150 << 20)"),
    "repeating": _again("'ab' * 75_000_000"),
    "wrapping": _again("textwrap.fill(text, 70)", "import textwrap; text = 'some words to wrap ' * 30_000"),
    "differences": Runaway("list(difflib.ndiff(one, other))", "import difflib, random; random.seed(1)\none = [f'line {random.random()}' for _ in range(3000)]; other = [line + 'x' for line in one]"),
    "close matches": _again("difflib.get_close_matches('wordx 1', words)", f"import difflib\n{_WORDS}"),
    # collections and algorithms
    "a sort": _again("sorted(data)", "data = [n * 7919 % 1_000_003 for n in range(1_000_000)]"),
    "a sort with keys": _again("sorted(words, key=len), sorted(words, key=str.lower)", _WORDS),
    "a sort that compares in Python": Runaway("sorted(range(10**6), key=cmp_to_key(lambda a, b: b - a))\nwhile True: pass", "from functools import cmp_to_key"),
    "a set": _again("set(data) & set(data[::2]), set(data) - set(data[::3])", "data = list(range(1_000_000))"),
    "products": Runaway("max(itertools.product(range(100), repeat=8))", "import itertools"),
    "iterators": Runaway("all(itertools.chain.from_iterable(itertools.repeat(itertools.repeat(1, 100))))", "import itertools"),
    "a deque": Runaway("collections.deque(iter(int, 1), maxlen=0)", "import collections"),
    "counters": _again("collections.Counter(words).most_common(10)", f"import collections\n{_WORDS}"),
    "a heap": _again("heapq.heapify(list(data)), heapq.nsmallest(1000, data), list(heapq.merge(data, data))", "import heapq; data = [n * 7919 % 1_000_003 for n in range(500_000)]"),
    "bisection": _again("[bisect.insort(kept, n * 7919 % 1_000_003) for n in range(200_000)]", "import bisect; kept = []\nfor _ in range(3): kept = sorted(kept[:100_000])"),
    "comparison of nested tuples": Runaway("a == b", "a = b = ()\nfor _ in range(60): a, b = (a, a), (b, b)"),
    "hashes of nested slices": Runaway("hash(a)", "a = 1\nfor _ in range(60): a = slice(a, a, a)"),
    "deep copies": _again("copy.deepcopy(data)", "import copy; data = [{'a': [n], 'b': (n, str(n))} for n in range(100_000)]"),
    "reference cycles": _again("gc.collect()", "import gc; kept = [[] for _ in range(2_000_000)]\nfor one in kept: one.append(one)"),
    # formats
    "JSON": _again("json.loads(json.dumps(data))", "import json; data = [{'a': n, 'b': [n, str(n)]} for n in range(200_000)]"),
    "pickle": _again("pickle.loads(pickle.dumps(data))", "import pickle; data = [{'a': n, 'b': [n, str(n)]} for n in range(200_000)]"),
    "marshal": _again("marshal.loads(marshal.dumps(data))", "import marshal; data = [(n, str(n)) for n in range(300_000)]"),
    "structs": _again("list(struct.iter_unpack('<IHB', block)), struct.pack('<1000000I', *range(1_000_000))", "import struct; block = bytes(7 * 1_000_000)"),
    "CSV": _again("list(csv.reader(io.StringIO(text)))", "import csv, io; text = 'a,\"b\",c\\n' * 500_000"),
    "base 64": _again("base64.b64decode(base64.b64encode(block)), base64.b85encode(block)", "import base64; block = bytes(range(256)) * 40_000"),
    "compression": _again("zlib.compress(block, 9)", "import zlib, random; block = random.randbytes(1 << 16) * 500"),
    "decompression": _again("zlib.decompress(block)", "import zlib; block = zlib.compress(bytes(100 << 20))"),
    "other compressions": _again("bz2.compress(block)", "import bz2; block = b'some text to compress ' * 500_000"),
    "hashing": _again("hashlib.sha256(block).digest(), hashlib.sha3_512(block).digest()", "import hashlib; block = bytes(64 << 20)"),
    "checksums": _again("zlib.crc32(block), zlib.adler32(block), binascii.hexlify(block)", "import zlib, binascii; block = bytes(64 << 20)"),
    "HTML": _again("HTMLParser().feed(text)", "from html.parser import HTMLParser; text = '<p a=\"b\">text &amp; more</p>' * 200_000"),
    "mail": _again("email.message_from_string(text).as_string()", "import email; text = 'A: b\\n' * 20_000 + '\\n' + 'line\\n' * 500_000"),
    "XML": _again("lxml.etree.fromstring(data)", _XML),
    "XPath": _again("tree.xpath('count(//b[following-sibling::b])')", f"{_XML}\ntree = lxml.etree.fromstring(data)"),
    "YAML": _again("yaml.safe_load(text)", "import yaml; text = '- a: [1, 2, {b: c}]\\n' * 20_000"),
    "SQL": Runaway(
        "sqlite3.connect(':memory:').execute('with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n').fetchall()"
        "\nwhile True: pass",
        "import sqlite3",
    ),
    # the compiler
    "compiling": _again("compile(source, 'x', 'exec')", "source = 'x = [a + b * c for d in e if f(g)]\\n' * 20_000"),
    "an expression": _again("compile(source, 'x', 'eval')", "source = ' + '.join(['(a * b)'] * 50_000)"),
    "a literal": _again("ast.literal_eval(text)", "import ast; text = '[' + '(1, \"a\", {2: 3}), ' * 100_000 + ']'"),
    "tokens": _again("list(tokenize.generate_tokens(io.StringIO(text).readline))", "import io, tokenize; text = 'a = b + c\\n' * 50_000"),
    # the host
    "printing": Runaway("while True: print('x', flush=True)"),
    "files": Runaway("while True: open('/tmp/a', 'w').write('x' * 1_000_000)"),
    "clocks": Runaway("while True: time.time()", "import time"),
    "randomness": Runaway("while True: os.urandom(1 << 16)", "import os"),
    "sleep": Runaway("time.sleep(1e9)", "import time"),
    "many short sleeps": Runaway("while True: time.sleep(0.0001)", "import time"),
    # numpy and pandas
    "sorting an array": _again("numpy.sort(numbers), numpy.argsort(numbers, kind='stable')", _ARRAYS, "data"),
    "a product of matrices": Runaway("matrix @ matrix\nwhile True: matrix @ matrix", "import numpy; matrix = numpy.random.rand(1500, 1500)", "data"),
    "a choice by a mask": _again("numpy.where(numbers > 0.5, numbers, -numbers).sum(), numbers[numbers > 0.5]", _ARRAYS, "data"),
    "functions of an array": _again("numpy.sin(numbers) ** numpy.cos(numbers), numpy.cumsum(numbers)", _ARRAYS, "data"),
    "unique values": _again("numpy.unique(numbers), numpy.histogram(numbers, 1000), numpy.fft.fft(numbers)", _ARRAYS, "data"),
    "linear algebra": _again("numpy.linalg.svd(matrix)", "import numpy; matrix = numpy.random.rand(400, 400)", "data"),
    "groups": _again("frame.groupby('key').agg(['mean', 'sum', 'max'])", _FRAME, "data"),
    "a merge": _again("frame.merge(frame.head(300_000), on='key')", _FRAME, "data"),
    "a frame from text": _again("pandas.read_csv(io.StringIO(text))", "import io, pandas; text = 'a,b,c\\n' + '1,2.5,text\\n' * 300_000", "data"),
    "a function for each row": Runaway("frame.apply(lambda row: row.sum(), axis=1)", _FRAME, "data"),
}  # fmt: skip
"""By what goes on."""
