import Replicate from "replicate";

const client = new Replicate({ auth: process.env.SERVICE_KEY, baseUrl: `${process.env.SERVICE_URL}/v1` });
const model = "black-forest-labs/flux-schnell-lora";
const input = { prompt: "red apple", megapixels: "0.25", num_inference_steps: 1, seed: 5, output_format: "png" };

const [file] = await client.run(model, { input });
const blob = await file.blob();
let created = await client.predictions.create({ model, input });
created = await client.wait(created);
const long = { ...input, megapixels: "1", num_inference_steps: 4, num_outputs: 4 };
const cancelled = await client.predictions.create({ model, input: long });
await client.predictions.cancel(cancelled.id);
const [owner, name] = model.split("/");
const found = await client.models.get(owner, name);
let refusal;
try {
  await client.run(model, { input: { ...input, num_outputs: 9 } });
} catch (error) {
  refusal = { kind: error.constructor.name, status: error.response?.status };
}
console.log(
  JSON.stringify({
    signature: Buffer.from(await blob.arrayBuffer()).subarray(1, 4).toString(),
    status: created.status,
    outputs: created.output.length,
    cancelled: (await client.predictions.get(cancelled.id)).status,
    listed: (await client.predictions.list()).results.some((each) => each.id === created.id),
    models: (await client.models.list()).results.map((each) => `${each.owner}/${each.name}`),
    version: found.latest_version.id.length,
    secret: (await client.webhooks.default.secret.get()).key.startsWith("whsec_"),
    refusal,
  }),
);
