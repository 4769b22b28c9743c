"""Replies as models of different makers write them, each with what must come of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """A reply: the code that runs, or else the answer that it gives, or else words that the model is told.

    `told` may stand beside code.
    """

    text: str
    runs: tuple[str, ...] = ()
    answer: str | None = None
    told: str = ""


A, B = "print('a')\n", "print('b')\n"
NONE = "no block at all"
THINKING = "reasoning"


def block(word: str, code: str = A, fence: str = "```") -> str:
    return f"{fence}{word}\n{code}{fence}"


def runs(text: str, *codes: str, told: str = "") -> Said:
    return Said(text, codes or (A,), told=told)


def tells(text: str, told: str) -> Said:
    return Said(text, told=told)


def answers(text: str, answer: str) -> Said:
    return Said(text, answer=answer)


FENCES = [
    *(runs(block(word)) for word in ("repl", "REPL", "python", "Python", "PYTHON", "py", "python3", "Python3")),
    *(
        runs(block(word))
        for word in ("{repl}", "{python}", "{.python}", "{python, echo=FALSE}", "{code-cell} ipython3")
    ),
    *(
        runs(block(word))
        for word in ("repl ", " repl", "repl {1}", "python title='x.py'", "python:main.py", "py linenums")
    ),
    *(runs(block("repl", fence=fence)) for fence in ("~~~", "````", "~~~~~~")),
    runs("```repl\n" + A + "`````"),
    runs("```repl\n" + A + "   ```   "),
    runs("```repl\n" + A),
    runs("```repl\nprint('a')", "print('a')"),
    runs("```repl\nprint('a')```"),
    runs(block("repl").replace("\n", "\r\n")),
    runs(block("repl").replace("\n", "\r")),
    runs("\ufeff" + block("repl")),
    runs("~~~python\nprint('```')\n~~~", "print('```')\n"),
    runs("````python\nprint('''\n```\n''')\n````", "print('''\n```\n''')\n"),
    runs(block("repl") + "\n" + block("repl", B), A, B),
    runs(block("repl") + "\nThen:\n" + block("repl", B) + "\nDone.", A, B),
    runs(block("python") + "\n\n" + block("py", B), A, B),
    runs(block("python", B) + "\n" + block("repl"), A, told="beside `repl` blocks"),
    runs(block("json", "{}\n") + "\n" + block("repl")),
    runs(block("text", "FINAL(1)\n") + "\n" + block("repl")),
    runs(block("repl", "\n") + "\n" + block("python")),
    runs("```repl\n" + A + block("repl", B), A, B),
    runs("```python import json\n" + A + "```", "import json\n" + A),
    runs("```repl\n" + A + "```<|im_end|>"),
    runs("```repl\n" + A + "```</s>"),
]

PROSE = [
    runs("Let me look at it first.\n\n" + block("repl") + "\n\nThis prints the letter."),
    runs("## Plan\n\n1. look\n2. count\n\n" + block("repl") + "\n\n---\n"),
    runs("**Step 1**\n" + block("python")),
    runs("I use `repl` blocks.\n" + block("repl")),
    runs("1. Look:\n   ```repl\n   print('a')\n   ```\n2. Go on."),
    runs("- Look:\n  ```python\n  print('a')\n  ```"),
    runs("10. Look:\n\n    ```repl\n    print('a')\n    ```"),
    runs("- One\n  - Two\n    ```repl\n    print('a')\n    ```"),
    runs("* ```repl\n  print('a')\n  ```"),
    runs("1. First\n   ```repl\n   print('a')\n   ```\n2. Then\n   ```repl\n   print('b')\n   ```", A, B),
    runs("  ```repl\n  print('a')\n  ```"),
    runs("   ```repl\n   if 1:\n       print('a')\n   ```", "if 1:\n    print('a')\n"),
    runs("```repl\n    print('a')\n    print('b')\n```", A + B),
    runs("```repl\n\tprint('a')\n\tprint('b')\n```", A + B),
    runs("- Tabs\n\n\t```repl\n\tprint('a')\n\t```"),
]

PROMPTS = [
    runs(block("repl", "p = '''\n```\nx\n```\n'''\n"), "p = '''\n```\nx\n```\n'''\n"),
    runs(block("repl", 'p = """Use:\n```python\nx = 1\n```\n"""\n'), 'p = """Use:\n```python\nx = 1\n```\n"""\n'),
    runs(block("python", "p = f'''\n```json\n{1}\n```\n'''\n"), "p = f'''\n```json\n{1}\n```\n'''\n"),
    runs(
        block("repl", "p = '''\n```repl\nx\n```\n```repl\ny\n```\n'''\n"),
        "p = '''\n```repl\nx\n```\n```repl\ny\n```\n'''\n",
    ),
    runs(block("repl", "p = '''\n```\n'''\n") + "\nNext:\n" + block("repl", B), "p = '''\n```\n'''\n", B),
    runs(block("repl", "p = '<think>x</think>'\n"), "p = '<think>x</think>'\n"),
    runs(block("repl", "p = '''\n</think>\n'''\n"), "p = '''\n</think>\n'''\n"),
    runs(block("repl", "# FINAL(1)\n" + A), "# FINAL(1)\n" + A),
    runs(block("repl", "p = '''\nFINAL(1)\n'''\n"), "p = '''\nFINAL(1)\n'''\n"),
    runs(block("repl", "p = f'FINAL({1})'\n"), "p = f'FINAL({1})'\n"),
    runs(block("repl", "p = '''\n%d of %s\n!x\n'''\n"), "p = '''\n%d of %s\n!x\n'''\n"),
    runs(block("repl", "p = '''\n>>> x\n'''\n"), "p = '''\n>>> x\n'''\n"),
]

HABITS = [
    runs(block("repl", ">>> print('a')\n")),
    runs(block("python", ">>> print('a')\na\n"), told="taken for output"),
    runs(block("python", ">>> for i in '1':\n...     print(i)\n...\n"), "for i in '1':\n    print(i)\n\n"),
    runs(block("python", "# look\n>>> print('a')\n")),
    runs(block("python", "In [1]: print('a')\n")),
    runs(block("python", "In [1]: print('a')\na\n\nIn [2]: print('b')\nb\n"), A + B, told="taken for output"),
    runs(block("python", "In [1]: if 1:\n   ...:     print('a')\n"), "if 1:\n    print('a')\n"),
    runs(block("python", "In [3]:\nprint('a')\n"), "\n" + A),
    runs(block("python", "%%python\n" + A)),
    runs(block("python", "%%time\n" + A)),
    runs(block("python", "%%capture out\n" + A)),
    tells(block("python", "%%bash\nls\n"), "a `%%bash` cell"),
    tells(block("python", "%%writefile a.txt\nhello\n"), "`%%writefile` cell"),
    runs(block("python", "%%sql\nselect 1\n") + "\n" + block("python"), told="`%%sql` cell did not run"),
]


def left_out(line: str) -> str:
    return f"pass  # {line}\n"


MAGICS = [
    runs(block("python", "!pip install x\n" + A), left_out("!pip install x") + A, told="nothing can be installed"),
    runs(
        block("python", "# a\n!pip install x\n" + A), "# a\n" + left_out("!pip install x") + A, told="`!pip install x`"
    ),
    runs(
        block("repl", "%pip a\n%matplotlib b\n" + A),
        left_out("%pip a") + left_out("%matplotlib b") + A,
        told="%matplotlib",
    ),
    runs(block("repl", "import re\n!ls -la\n" + A), "import re\n" + left_out("!ls -la") + A, told="no shell"),
    runs(block("repl", "if 1:\n    !ls\n" + A), "if 1:\n    " + left_out("!ls") + A, told="`!ls`"),
    runs(block("repl", "p = '''\n!x\n'''\n!ls\n"), "p = '''\n!x\n'''\n" + left_out("!ls"), told="`!ls`"),
]
"""Only the guest can tell these lines from Python."""

REASONING = [
    *(
        runs(f"{begin}\nPerhaps\n{block('repl', B)}\nFINAL(1)\n{end}\n{block('repl')}")
        for begin, end in (
            ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>"),
            ("<thought>", "</thought>"), ("<THINK>", "</THINK>"), ("<scratchpad>", "</scratchpad>"),
            ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<seed:think>", "</seed:think>"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
            ("<|channel>thought", "<channel|>"),
        )
    ),
    runs("<think></think>" + block("repl")),
    runs("<think>\n\n</think>\n\n" + block("repl")),
    runs("<think>one</think>" + "\n" + block("repl") + "\n<think>two\n" + block("repl", B) + "</think>"),
    runs("First I think.\n" + block("repl", B) + "\n</think>\n" + block("repl")),
    runs("Unfinished\n```\nx\n</think>\n" + block("repl")),
    runs("The tag `</think>` is not mine.\n" + block("repl")),
    runs("The text has a <think> somewhere.\n" + block("repl")),
    runs("<|channel|>commentary<|message|>I look.<|end|>\n<|channel|>final<|message|>\n" + block("repl")),
    tells("<think>" + block("repl") + "</think>", THINKING),
    tells("<think>\nI never stop.\n" + block("repl"), "never closed"),
    tells("<think>FINAL(1)</think>", THINKING),
    tells("FINAL(1)\n</think>\n\nI go on.", THINKING),
    tells("<|channel|>commentary to=python <|constrain|>json<|message|>{\"code\": \"1\"}<|call|>", THINKING),
]  # fmt: skip

NO_CODE = [
    tells("I shall look at the text.", NONE),
    tells("I'm sorry, but I can't help with that.", NONE),
    tells("print('a')", NONE),
    tells("<!-- nothing -->", NONE),
    *(
        tells(block(word), f"a `{word}` block")
        for word in ("json", "sh", "bash", "javascript", "sql", "tool_code", "text")
    ),
    tells(block(""), "a block without a language"),
    tells(block("repl", ""), "an empty `repl` block"),
    tells(block("python", "\n\n"), "an empty `python` block"),
    tells(block("json", "{}\n") + "\n" + block("sh", "ls\n"), "a `json` block and a `sh` block"),
    tells("Look:\n\n    print('a')\n", "an indented block"),
    tells("Example:\n\n    ```repl\n    print('a')\n    ```\n", "an indented block"),
    tells("Here: ```repl print('a')```", "a fence within a line"),
    tells("> ```repl\n> print('a')\n> ```", "quotation"),
    tells('<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>', "a call of a tool"),
    tells("<function=python>\n<parameter=code>print(1)</parameter>\n</function>", "a call of a tool"),
    tells('<function_calls>\n<invoke name="python">\n</invoke>\n</function_calls>', "a call of a tool"),
    tells("<execute>\nprint(1)\n</execute>", "a call of a tool"),
    tells("<code>print(1)</code>", "a call of a tool"),
    tells("<|python_tag|>print(1)", "a call of a tool"),
    tells('{"code": "print(1)"}', "a call of a tool"),
    tells('[{"name": "repl", "arguments": {}}]', "a call of a tool"),
    tells("```markdown\n```repl\nprint('a')\n```\n```", "a `markdown` block"),
    tells("````\n```repl\nprint('a')\n```\n````", "a block without a language"),
]

NO_ANSWER = [
    tells("I will call FINAL(42) once I know.", "FINAL that was not taken"),
    tells("The answer is FINAL(42)", "beginning of a line"),
    tells("**FINAL(42)**", "beginning of a line"),
    tells("`FINAL(42)`", "beginning of a line"),
    tells("- FINAL(42)", "beginning of a line"),
    tells("> FINAL(42)", "beginning of a line"),
    tells("FINAL: 42", "beginning of a line"),
    tells("    FINAL(42)", "beginning of a line"),
    tells("FINAL(42", "brackets do not close"),
    tells("FINAL(42) is what I shall say.", "other text follows"),
    tells("FINAL(42)\nis what I shall say.", "other text follows"),
    tells("FINAL(42), FINAL(43)", "other text follows"),
    tells("FINAL(42)\n" + block("json", "{}\n"), "other text follows"),
    tells(block("text", "FINAL(42)\n"), "a `text` block"),
    tells("To end, write\n```\nFINAL(answer)\n```\nNow I look.", "other text follows"),
    runs("FINAL(42)\n" + block("repl"), told="FINAL beside the code"),
    runs(block("repl") + "\nFINAL(42)", told="FINAL beside the code"),
    runs(block("python") + "\nFINAL_VAR(x)", told="FINAL beside the code"),
    runs("I write FINAL(42) later.\n" + block("repl")),
]

UNTAKEN = [
    tells("FINAL_VAR(nothing_of_this_name)", "there is none called nothing_of_this_name"),
    tells("FINAL_VAR('nothing_of_this_name')", "there is none called nothing_of_this_name"),
    tells("FINAL_VAR(llm_query)", "there is none called llm_query"),
    tells("FINAL_VAR(len)", "there is none called len"),
    tells("FINAL_VAR()", "there is none in it"),
    tells("FINAL_VAR('')", "there is none in it"),
    tells("FINAL_VAR(the answer)", "not 'the answer'"),
    tells("FINAL_VAR(found['a'])", "found['a"),
    tells("FINAL(found)", "names your variable found"),
    tells("FINAL(str(found))", "names your variable found"),
    tells("FINAL(f'{1}')", "is an f-string"),
    tells("FINAL(f'It is {found}')", "names your variable found"),
]
"""Where the program has a variable `found`."""

ANSWERS = [
    answers("FINAL(42)", "42"),
    answers("FINAL(42)\n", "42"),
    answers("FINAL(42).", "42"),
    answers("FINAL(42)\n```", "42"),
    answers("```\nFINAL(42)\n```", "42"),
    answers("I know.\n\nFINAL(forty-two)", "forty-two"),
    answers("I know.\r\nFINAL(42)\r\n", "42"),
    answers('FINAL("forty-two")', "forty-two"),
    answers("FINAL('it\\'s')", "it's"),
    answers('FINAL("a\\nb")', "a\nb"),
    answers('FINAL("""a\n(b""")', "a\n(b"),
    answers("FINAL(r'\\d')", "\\d"),
    answers("FINAL(It's 42 (as I said))", "It's 42 (as I said)"),
    answers('FINAL("Yes" and "no")', '"Yes" and "no"'),
    answers("FINAL([1, 2])", "[1, 2]"),
    answers("FINAL(yes)", "yes"),
    answers("FINAL(one\ntwo)", "one\ntwo"),
    answers("FINAL(1)\nNo:\nFINAL(2)", "2"),
    answers("FINAL(open\n\nFINAL(42)", "42"),
    answers("<think>FINAL(1)</think>\nFINAL(2)", "2"),
    answers("FINAL(1)</think>\nFINAL(2)", "2"),
    answers("<answer>\nFINAL(42)\n</answer>", "42"),
    answers("FINAL(42)<|im_end|>", "42"),
    answers("FINAL_VAR(found)", "what was found"),
    answers('FINAL_VAR("found")', "what was found"),
    answers("FINAL_VAR(`found`)", "what was found"),
]
"""Where the program has a variable `found`."""

READ = [*FENCES, *PROSE, *PROMPTS, *HABITS, *REASONING, *NO_CODE, *NO_ANSWER]
"""Replies that are read without a guest."""
