// Drives Pyodide on Deno: CPython compiled by Emscripten, in a JavaScript realm. Its argument is Pyodide's folder.
// Speaks the protocol of serving.py.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const folder = Deno.args[0];
const { loadPyodide, version } = await import(pathToFileURL(`${folder}/pyodide.mjs`));

const TRIVIAL = "total = sum(range(10))\ntotal";
const CALLS = 10000; // one is so short that 1,000 would drown in what else a turn takes

function expect(value, wanted) {
  if (value !== wanted) throw new Error(`${value} instead of ${wanted}`);
}

async function seconds(work) {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1e3;
}

async function firstResult() {
  const realm = await loadPyodide({ indexURL: `${folder}/`, stdout: console.error });
  expect(realm.runPython(TRIVIAL), 45);
  return realm;
}

const warm = await firstResult();
warm.registerJsModule("host", { ping: () => null });
const programs = new Map();
const held = [];

const measures = {
  fresh: () => seconds(firstResult),
  exec: () => seconds(() => expect(warm.runPython(TRIVIAL), 45)),
  door: async () => {
    const empty = await seconds(() => warm.runPython(`for _ in range(${CALLS}): pass`));
    const calling = `from host import ping\nfor _ in range(${CALLS}): ping()`;
    return (await seconds(() => warm.runPython(calling)) - empty) / CALLS;
  },
  program: ({ name, first, code }) => {
    if (!programs.has(name)) {
      // One realm takes all programs, each with names of its own: a realm for each would cost 100 MB.
      programs.set(name, warm.toPy({ __name__: "__main__" }));
      warm.runPython(first, { globals: programs.get(name) });
    }
    return seconds(() => warm.runPython(code, { globals: programs.get(name) }));
  },
  hold: async ({ count }) => {
    for (let more = 0; more < count; more++) held.push(await firstResult());
    return held.length;
  },
};

console.log(JSON.stringify({ about: `Pyodide ${version} on Deno ${Deno.version.deno}`, measures: Object.keys(measures) }));
for await (const line of createInterface({ input: process.stdin })) {
  const { do: asked, ...rest } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ value: await measures[asked](rest) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error).slice(-500) }));
  }
}
