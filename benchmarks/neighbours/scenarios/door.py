"""Requests through the door that no stub would make: frames of up to 32 MB that are costly to read."""

from __future__ import annotations

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

SENDER = """
import _host

def sent(frame, times):
    for _ in range(times):
        try:
            _host.call(frame)
        except Exception:
            pass
"""
MB = 1_000_000


async def _frames(attacker: Attacker, frame: str, times: int = 7, sessions: int = 2) -> Play:
    """Send a frame, which is a Python expression, so many times a turn. A turn may send 256 MB."""
    made = await attacker.sessions(sessions)
    for session in made:
        await attacker.turn(session, f"{SENDER}\nframe = {frame}")

    async def play() -> None:
        await attacker.together([attacker.turn(session, f"sent(frame, {times})") for session in made])

    return play


@TABLE.of(POOR)
async def deep_json(attacker: Attacker) -> Play:
    """Lists within lists, 15 million deep."""
    return await _frames(attacker, f"""b'{{"op":"x","a":' + b'[' * {15 * MB} + b']' * {15 * MB} + b'}}'""")


@TABLE.of(POOR)
async def wide_json(attacker: Attacker) -> Play:
    """A list of 2 million empty lists."""
    return await _frames(attacker, f"""b'{{"op":"x","a":[' + b'[],' * {2 * MB} + b'1]}}'""", times=40)


@TABLE.of(POOR)
async def deep_and_wide_json(attacker: Attacker) -> Play:
    """A hundred thousand lists within lists, each 30 deep."""
    deep = "(b'[' * 30 + b']' * 30 + b',')"
    return await _frames(attacker, f"""b'{{"op":"x","a":[' + {deep} * 100_000 + b'1]}}'""", times=40)


@TABLE.of(POOR)
async def wide_objects(attacker: Attacker) -> Play:
    """A list of 1.5 million empty objects, in the place of prompts."""
    return await _frames(
        attacker, f"""b'{{"op":"llm_query","prompts":[' + b'{{}},' * {3 * MB // 2} + b'1]}}'""", times=50
    )


@TABLE.of(POOR)
async def million_keys(attacker: Attacker) -> Play:
    """An object of a million keys."""
    keys = """b','.join(b'"key %d":1' % n for n in range(1_000_000))"""
    return await _frames(attacker, f"""b'{{"op":"x",' + {keys} + b'}}'""", times=15)


@TABLE.of(POOR)
async def duplicate_keys(attacker: Attacker) -> Play:
    """An object in which one key stands a million times."""
    return await _frames(attacker, f"""b'{{"op":"x"' + b',"a":1' * {MB} + b'}}'""", times=40)


@TABLE.of(POOR)
async def huge_numbers(attacker: Attacker) -> Play:
    """Ten thousand whole numbers of 3,000 digits."""
    return await _frames(attacker, """b'{"op":"x","a":[' + (b'9' * 3000 + b',') * 10_000 + b'1]}'""")


@TABLE.of(POOR)
async def many_numbers(attacker: Attacker) -> Play:
    """A million fractions."""
    return await _frames(attacker, f"""b'{{"op":"x","a":[' + b'1.5e3,' * {MB} + b'1]}}'""", times=40)


@TABLE.of(POOR)
async def escapes(attacker: Attacker) -> Play:
    """A text of two million escaped surrogates."""
    frame = r"""b'{"op":"x","a":"' + rb'\ud83d\ude00' * 2_000_000 + b'"}'"""
    return await _frames(attacker, frame, times=10)


@TABLE.of(POOR)
async def small_requests(attacker: Attacker) -> Play:
    """Ten thousand requests a turn for what there is not."""
    return await _frames(attacker, """b'{"op":"nothing"}'""", times=10_000, sessions=4)


@TABLE.of()
async def held_requests(attacker: Attacker) -> Play:
    """Six wide requests that wait for a slow model, and are held meanwhile."""
    asked = """b'{"op":"llm_query","later":true,"prompts":["wait 20"],"a":['"""
    frame = f"""{asked} + b'[],' * {3 * MB} + b'1]}}'"""
    sessions = await attacker.sessions(2)
    for session in sessions:
        await attacker.turn(session, f"{SENDER}\nframe = {frame}")
    code = "sent(frame, 3)\nimport _door\n_door.wait(20)"

    async def play() -> None:
        await attacker.together([attacker.turn(session, code) for session in sessions])

    return play
