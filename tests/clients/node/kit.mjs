// What the Node scripts share: where the server is, and how a check is reported (as kit.py).
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export const URL_ = process.env.RACK_URL;
export const MODEL = process.env.RACK_MODEL;
export const QUESTION = 'What is the weather in Paris?';
export const PARAMETERS = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 20 } },
  required: ['city'],
  additionalProperties: false,
};

export function wanted(condition, what) {
  if (!condition) throw new Error(`got ${JSON.stringify(what)}`);
}

export async function run(name, checks) {
  const manifest = join(process.cwd(), 'node_modules', name, 'package.json');
  const { version } = JSON.parse(readFileSync(manifest, 'utf8'));
  let failed = 0;
  for (const [check, body] of Object.entries(checks)) {
    let ok = true, shown;
    try {
      shown = await body();
    } catch (error) {
      console.error(error);
      ok = false; failed += 1; shown = String(error);
    }
    shown = String(shown).replace(/\s+/g, ' ').slice(0, 300);
    console.log(JSON.stringify({ package: name, version, check, ok, shown }));
  }
  process.exit(failed > 0 ? 1 : 0);
}
