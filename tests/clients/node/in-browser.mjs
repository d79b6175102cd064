// Both SDKs on a page of another origin; bundled by esbuild, as web applications are.
import OpenAI from "openai";
import Replicate from "replicate";

const model = "black-forest-labs/flux-schnell-lora";
const ask = { model, prompt: "red apple", size: "256x256", seed: 11 };

window.drawWithOpenAI = async (url, apiKey) => {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, dangerouslyAllowBrowser: true });
  const { data, response } = await client.images.generate({ ...ask, response_format: "b64_json" }).withResponse();
  const events = [];
  for await (const event of await client.images.generate({ ...ask, stream: true, partial_images: 1 })) {
    events.push(event.type);
  }
  const linked = await client.images.generate({ ...ask, response_format: "url" });
  const file = await fetch(linked.data[0].url);
  const models = [];
  for await (const each of client.models.list()) models.push(each.id);
  let refusal;
  try {
    await client.images.generate({ ...ask, n: 99 });
  } catch (error) {
    refusal = { status: error.status, param: error.param, id: Boolean(error.requestID) };
  }
  const signature = atob(data.data[0].b64_json).slice(1, 4);
  const cost = response.headers.get("x-schnell-cost");
  return { signature, cost, events, link: file.status, models: models.includes(model), refusal };
};

window.drawWithReplicate = async (url, auth) => {
  const client = new Replicate({ auth, baseUrl: `${url}/v1` });
  const input = { prompt: "red apple", megapixels: "0.25", num_inference_steps: 1, seed: 5, output_format: "png" };
  const [output] = await client.run(model, { input });
  const signature = new Uint8Array(await (await output.blob()).arrayBuffer()).slice(1, 4);
  const created = await client.predictions.create({ model, input });
  const ended = await client.wait(created);
  const cancelled = await client.predictions.cancel(created.id);
  let refusal;
  try {
    await client.run(model, { input: { ...input, num_outputs: 9 } });
  } catch (error) {
    refusal = error.response?.status;
  }
  const kinds = [ended.status, cancelled.status];
  return { signature: String.fromCharCode(...signature), kinds, refusal };
};
