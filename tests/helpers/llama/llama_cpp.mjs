// What llama.cpp makes of rows of tokens, or of texts: node llama_cpp.mjs FOLDER JOBS, where FOLDER holds node_modules.
// JOBS (JSON): [{base, lora or null, rows: [[token]], starts: [place]}] or [{base, texts: [text]}]; printed (JSON): for each
// job and row, for each token from its start on (1: from the second), [its log-probability, the likeliest token, how far its
// logit is above the second]; for each text its tokens. What a row begins with as the
// row before it, up to its start, is not computed again.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const [folder, jobs] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(`${folder}/node_modules/node-llama-cpp/dist/index.js`).href);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: 1});
const models = new Map();

function judged({logits, totalLogitWeight}, next) {
    const [[first, most], [, second]] = [...logits].sort((one, other) => other[1] - one[1]);
    return [logits.get(next) - most - Math.log(totalLogitWeight), first, most - second];
}

const found = [];
for (const {base, lora, rows, starts, texts} of JSON.parse(readFileSync(jobs, "utf8"))) {
    if (!models.has(base)) models.set(base, await llama.loadModel({modelPath: base, gpuLayers: 0}));
    if (texts != null) {
        found.push(texts.map((text) => models.get(base).tokenize(text, true)));
        continue;
    }
    const contextSize = 64 + Math.max(...rows.map((row) => row.length));
    const context = await models.get(base).createContext({
        contextSize, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        ...(lora == null ? {} : {lora})
    });
    const sequence = context.getSequence();
    const scored = [];
    for (const [number, row] of rows.entries()) {
        const start = starts[number], before = rows[number - 1] ?? [];
        let kept = 0;
        while (kept < start - 1 && row[kept] === before[kept]) kept++;
        if (kept) await sequence.eraseContextTokenRanges([{start: kept, end: sequence.nextTokenIndex}]);
        else await sequence.clearHistory();
        const asked = row.slice(0, -1).map((token, place) => place + 1 < start ? token : [token, {generateNext: {
            logits: {filter: {tokens: [row[place + 1]], includeTop: 2}}, totalLogitWeight: true
        }}]);
        const seen = (await sequence.controlledEvaluate(asked.slice(kept))).slice(start - 1 - kept);
        scored.push(seen.map(({next}, place) => judged(next, row[start + place])));
    }
    await context.dispose();
    found.push(scored);
}
process.stdout.write(JSON.stringify(found));
await llama.dispose();
