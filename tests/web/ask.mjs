// A bundle in transformers.js: `node ask.mjs WISH FOLDER [OPTIONS]`, a JSON list on stdin, its answers as JSON on stdout.
// No network, and nothing written; OPTIONS is the JSON of from_pretrained's options.
import { readFileSync } from 'node:fs'
import { basename, dirname, resolve } from 'node:path'
import { AutoModelForCausalLM, AutoTokenizer, env, pipeline } from '@huggingface/transformers'

const MAX_NEW_TOKENS = 8
const [wish, folder, options = '{}'] = process.argv.slice(2)
env.allowRemoteModels = false
env.useFSCache = false
env.localModelPath = dirname(resolve(folder)) + '/'
const name = basename(folder)
const loading = { device: 'cpu', ...JSON.parse(options) }
const numbers = (tensor) => tensor.tolist().flat().map(Number)

const WISHES = {
  // text -> its token ids
  async encode(texts) {
    const tokenizer = await AutoTokenizer.from_pretrained(name)
    return texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }))
  },
  // messages -> the prompt of the chat template
  async chat(conversations) {
    const tokenizer = await AutoTokenizer.from_pretrained(name)
    return conversations.map((one) => tokenizer.apply_chat_template(one, { tokenize: false, add_generation_prompt: true }))
  },
  // prompt -> ids of what follows, the one that ends it included
  async generate(prompts) {
    const tokenizer = await AutoTokenizer.from_pretrained(name)
    const model = await AutoModelForCausalLM.from_pretrained(name, loading)
    const answers = []
    for (const prompt of prompts) {
      const inputs = tokenizer(prompt, { add_special_tokens: false })
      const ids = numbers(await model.generate({ ...inputs, max_new_tokens: MAX_NEW_TOKENS, do_sample: false }))
      answers.push(ids.slice(inputs.input_ids.dims[1]))
    }
    return answers
  },
  // text -> score by label
  async classify(texts) {
    const classifier = await pipeline('text-classification', name, loading)
    const answers = await classifier(texts, { top_k: null })
    return answers.map((rows) => Object.fromEntries(rows.map(({ label, score }) => [label, score])))
  },
}

console.log(JSON.stringify(await WISHES[wish](JSON.parse(readFileSync(0, 'utf8')))))
