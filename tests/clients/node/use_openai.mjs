// openai for Node: chat completions and responses.
import OpenAI from 'openai';
import { MODEL, PARAMETERS, QUESTION, run, wanted } from './kit.mjs';

const client = new OpenAI();
const ask = { model: MODEL, messages: [{ role: 'user', content: QUESTION }] };
const tools = [{ type: 'function', function: { name: 'get_weather', parameters: PARAMETERS } }];

await run('openai', {
  async chat() {
    const answer = await client.chat.completions.create({ ...ask, max_completion_tokens: 16 });
    wanted(answer.choices[0].message.content, answer);
    return answer.usage.total_tokens;
  },
  async stream() {
    const events = client.chat.completions.stream({ ...ask, max_completion_tokens: 16 });
    const final = await events.finalChatCompletion();
    wanted(final.choices[0].message.content, final);
    return final.choices[0].finish_reason;
  },
  async tools() {
    const answer = await client.chat.completions.create({ ...ask, tools, tool_choice: 'required' });
    const call = answer.choices[0].message.tool_calls[0];
    wanted('city' in JSON.parse(call.function.arguments), call);
    return call.function.arguments;
  },
  async responses() {
    const answer = await client.responses.create({
      model: MODEL, input: QUESTION, max_output_tokens: 16,
    });
    wanted(answer.output_text, answer);
    return answer.status;
  },
  async responses_stream() {
    const kinds = new Set();
    const events = await client.responses.create({
      model: MODEL, input: QUESTION, max_output_tokens: 16, stream: true,
    });
    for await (const event of events) kinds.add(event.type);
    wanted(kinds.has('response.output_text.delta'), [...kinds]);
    return [...kinds].join(', ');
  },
});
