// groq-sdk.
import Groq from 'groq-sdk';
import { MODEL, PARAMETERS, QUESTION, run, wanted } from './kit.mjs';

const client = new Groq();
const ask = { model: MODEL, messages: [{ role: 'user', content: QUESTION }] };
const tools = [{ type: 'function', function: { name: 'get_weather', parameters: PARAMETERS } }];

await run('groq-sdk', {
  async chat() {
    const answer = await client.chat.completions.create({ ...ask, max_completion_tokens: 16 });
    wanted(answer.choices[0].message.content, answer);
    return answer.usage.completion_time;
  },
  async stream() {
    const chunks = [];
    const events = await client.chat.completions.create({
      ...ask, max_completion_tokens: 16, stream: true,
    });
    for await (const chunk of events) chunks.push(chunk);
    wanted(chunks.at(-1).x_groq.usage.completion_tokens === 16, chunks.at(-1));
    return `${chunks.length} chunks`;
  },
  async structured() {
    const answer = await client.chat.completions.create({
      ...ask,
      response_format: { type: 'json_schema', json_schema: { name: 'city', schema: PARAMETERS } },
    });
    const text = answer.choices[0].message.content;
    wanted('city' in JSON.parse(text), text);
    return text;
  },
  async tools() {
    const answer = await client.chat.completions.create({ ...ask, tools, tool_choice: 'required' });
    const call = answer.choices[0].message.tool_calls[0];
    wanted('city' in JSON.parse(call.function.arguments), call);
    return call.function.arguments;
  },
});
