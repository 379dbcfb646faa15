// What the OpenAI SDK for Node makes of the gateway: one JSON object on standard output, which the Python test judges.
// Usage: node chat.mjs BASE_URL KEY   (run from a folder whose node_modules holds `openai`)

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/");
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const hello = [{ role: "user", content: "Hello!" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const about = { name: "get_weather", description: "The weather of a city", parameters };
const question = [{ role: "user", content: "What is the weather in Paris and in Rome?" }];

async function plain() {
    const { data, response } = await client.chat.completions.create({ model: "auto", messages: hello }).withResponse();
    const decision = response.headers.get("x-tierwise-decision");
    return { text: data.choices[0].message.content, model: data.model, usage: data.usage, decision };
}

async function streaming() {
    const asked = { model: "auto", messages: hello, stream: true, stream_options: { include_usage: true } };
    let text = "", usage = null, stop = null;
    for await (const chunk of await client.chat.completions.create(asked)) {
        text += chunk.choices[0]?.delta?.content ?? "";
        stop = chunk.choices[0]?.finish_reason ?? stop;
        usage = chunk.usage ?? usage;
    }
    return { text, usage, stop };
}

async function leaving() {
    const stream = await client.chat.completions.create({ model: "simulated/large", messages: hello, stream: true });
    for await (const chunk of stream) {
        if (chunk.choices[0]?.delta?.content) break; // the SDK aborts the request
    }
    return { aborted: stream.controller.signal.aborted };
}

async function tools() {
    const called = [];
    const run = client.chat.completions.runTools({
        model: "simulated/large",
        messages: question,
        tools: [{
            type: "function",
            function: { ...about, parse: JSON.parse, function: ({ city }) => (called.push(city), `${city}: sunny`) },
        }],
    });
    return { called, text: await run.finalContent() };
}

async function streamedTools() {
    const tool = { type: "function", function: about };
    const stream = client.chat.completions.stream({ model: "simulated/large", messages: question, tools: [tool] });
    const final = await stream.finalChatCompletion();
    const calls = final.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments));
    return { calls, stop: final.choices[0].finish_reason };
}

async function structured() {
    const schema = { ...parameters, additionalProperties: false };
    const json_schema = { name: "place", schema, strict: true };
    const asked = { model: "auto", messages: hello, response_format: { type: "json_schema", json_schema } };
    const reply = await client.chat.completions.create(asked);
    return JSON.parse(reply.choices[0].message.content);
}

async function embeddings() {
    const reply = await client.embeddings.create({ model: "auto", input: ["a cat", "a dog"] });
    return reply.data.map((each) => each.embedding.length);
}

async function models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names;
}

async function failing(asked, options) {
    try {
        await client.chat.completions.create({ model: "auto", messages: hello, ...asked }, options);
    } catch (error) {
        const { status, code, param } = error;
        return { name: error.constructor.name, status, code, param, message: error.message };
    }
    return null;
}

console.log(JSON.stringify({
    plain: await plain(),
    streaming: await streaming(),
    leaving: await leaving(),
    tools: await tools(),
    streamedTools: await streamedTools(),
    structured: await structured(),
    embeddings: await embeddings(),
    models: await models(),
    unknownModel: await failing({ model: "simulated/smal" }),
    malformed: await failing({ max_tokens: -1 }),
    unknownKey: await failing({}, { headers: { authorization: "Bearer tw-nobody" } }),
}));
