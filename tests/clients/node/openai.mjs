import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.SERVICE_URL}/v1`, apiKey: process.env.SERVICE_KEY, maxRetries: 0 });
const ask = { model: "black-forest-labs/flux-schnell-lora", prompt: "red apple", size: "256x256", seed: 11 };

const plain = await client.images.generate({ ...ask, n: 2, response_format: "b64_json" });
const linked = await client.images.generate({ ...ask, response_format: "url" });
const file = await fetch(linked.data[0].url);
const drawnAlone = Buffer.from(await file.arrayBuffer()).toString("base64");
const events = [];
for await (const event of await client.images.generate({ ...ask, stream: true, partial_images: 1 })) {
  events.push(event);
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
let refusal;
try {
  await client.images.generate({ ...ask, n: 99 });
} catch (error) {
  refusal = { kind: error.constructor.name, status: error.status, param: error.param };
}
console.log(
  JSON.stringify({
    pictures: plain.data.length,
    signature: Buffer.from(plain.data[0].b64_json, "base64").subarray(1, 4).toString(),
    linkType: file.headers.get("content-type"),
    events: events.map((event) => event.type),
    samePicture: events.at(-1).b64_json === drawnAlone,
    models,
    refusal,
  }),
);
