// The language of the page, and the texts of this pack in it: a table NAME_zh.json beside this file. What a table
// lacks stays English.
import { app } from "../../scripts/app.js";

const LANGUAGES = ["zh"]; // that have tables

const tables = {}; // each loaded when it is first needed

// A table in the language of the page; null in English and where it cannot be had.
export function tableOf(name) {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale");
  if (!LANGUAGES.includes(language)) return null;
  const file = `./${name}_${language}.json`;
  tables[file] ??= fetch(new URL(file, import.meta.url))
    .then((answer) => (answer.ok ? answer.json() : null))
    .catch(() => null);
  return tables[file];
}

export const textIn = (texts, text) => (texts && Object.hasOwn(texts, text) ? texts[text] : text);

// A pattern with its gaps, as {name}, filled.
export const filled = (pattern, values) => pattern.replace(/\{(\w+)\}/g, (gap, name) => values[name] ?? gap);

// A notice in the language of the page, by its English pattern.
export async function notice(pattern, values) {
  const table = await tableOf("notices");
  return filled(textIn(table?.notices, pattern), values);
}
