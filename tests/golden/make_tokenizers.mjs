// Makes tests/golden/tokenizers/: four small tokenizer.json files, and cases.json with what the Rust library `tokenizers`
// makes of awkward texts. Not part of the build; needs node and the npm package tokenizers 0.23.2 in a folder of its own:
//
//   node make_tokenizers.mjs PACKAGE_FOLDER TRAINING_TEXT OUTPUT_FOLDER [EXTRA_RANDOM_CASES]
//
// PACKAGE_FOLDER holds node_modules; TRAINING_TEXT is any English text (the committed files: the GPL, version 3).
import { createRequire } from 'node:module';
import { readFileSync, writeFileSync, mkdirSync } from 'node:fs';
import { resolve } from 'node:path';

const [packageFolder, trainingFile, outFolder, extra = '60'] = process.argv.slice(2);
const { Tokenizer } = createRequire(resolve(packageFolder, 'package.json'))('tokenizers');

const awkward = [
  '', ' ', 'a', 'Hello, world!', "I'm sure it's they'll we've I'd you're don't CAN'T IT'S 'S 'Tis",
  'café cafe\u0301 naïve nai\u0308ve Å A\u030a \u212b \u1e9b\u0323 s\u0323\u0307 \u0301lone \u1100\u1161\u11a8 각 \u0958 ﬁ',
  '你好，世界。这是一个测试！ 東京タワー ひらがな カタカナ 한국어 텍스트',
  '👍 👩‍👩‍👧‍👦 🏳️‍🌈 👋🏽 🇩🇪🇫🇷 ☺️ 😀😀😀😀', 'a' + ' '.repeat(37) + 'b' + ' '.repeat(64), '   leading', 'trailing   ', ' \t \t\t x\t',
  'line\nline\r\nline\r\n\r\n\n\n  indented\n\tTabbed\n \n', 'x\n\n\ny .\n\n z!\r\n?', '\n', '\r\n', '\n \n', ' \n', '.\n',
  '1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F ١٢٣٤ ²³ ½ Ⅷ ௧௨', 'foo123bar 2nd v1.2.3-rc4',
  'if (x->y[i] != NULL) { printf("%d\\n", *p++); } /* === */ #include <a.h>', '"quoted" “curly” ‘single’ it’s — – … ¿Qué?',
  'Привет мир Ελληνικά ΑΒΓ العربية עברית हिन्दी ภาษาไทย', 'mixedСмесь漢字abcひ123한', '\u00a0nbsp\u3000ideographic\u2003em\u200bzero\u180emong\u2028ls\u0085nel',
  '<|endoftext|>', 'a<|endoftext|>b', ' <|endoftext|> <|endoftext|><|endoftext|>', '<|endoftext', '<|end|endoftext|>', '<|im_start|>user\nHi<|im_end|>\n',
  '<|begin_of_text|>The<|eot_id|>', 'a <pad> b<pad>c', 'x  <left>  y  <right>  z <both> \n<left><right>  <left>', '<long><longer><longest>',
  'cafe\u0301token café-token cafe\u0301-token', "\u017f 'ſ 'S 'LL 'Ve", '\u0000\u0001\u007f\u0080\u00ad\ufeff\ufffd\uffff', '\u{10ffff}\u{10000}',
  'x'.repeat(700), 'ab'.repeat(300), '!'.repeat(300), '漢'.repeat(200), 'the'.repeat(100), 'Donaudampfschifffahrtsgesellschaftskapitän',
  ' the the  the   the', 'The GNU General Public License is a free, copyleft license for software and other kinds of works.',
];

// Random strings of awkward pieces (a linear congruential generator: the same on every machine).
const pieces = ['a', 'the', 'ing', ' ', '  ', '\n', '\r\n', '\t', '1', '42', '.', '!', "'s", "'", 'é', 'e\u0301', '\u0301', '漢', '👍', '\u200d', '\u00a0',
  '\u3000', '<|endoftext|>', '<|', '<left>', '<right>', '<both>', '<pad>', 'Ж', '\u1161', '\u1100', '²', '_', '-', '\u2028', 'tion', ' of', 'É', '\u0323', "'LL",
  '\u180e', '\u0345', 'ß', 'ﬀ', '\u00ad'];
let state = 20240601;
const random = (n) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0, Math.floor((state / 2 ** 32) * n));
const texts = [...awkward];
for (let i = 0; i < Number(extra); i++) texts.push(Array.from({ length: 1 + random(24) }, () => pieces[random(pieces.length)]).join(''));

// The letters of the byte level.
const letters = [];
for (let byte = 0, next = 256; byte < 256; byte++) {
  const self = (byte >= 33 && byte <= 126) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  letters[byte] = String.fromCodePoint(self ? byte : next++);
}

const token = (id, content, options = {}) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...options });
const byteLevel = (use_regex, add_prefix_space = false) => ({ type: 'ByteLevel', add_prefix_space, trim_offsets: true, use_regex });
const split = (pattern) => ({ type: 'Split', pattern, behavior: 'Isolated', invert: false });
const patterns = {
  llama3: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  qwen2: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

const shell = (vocab, merges, preTokenizer, model = {}) => ({
  version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: preTokenizer, post_processor: null,
  decoder: byteLevel(true),
  model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: '', end_of_word_suffix: '', fuse_unk: false, byte_fallback: false, ...model, vocab, merges },
});

// Plain BPE training: count the pairs, merge the most frequent (the first in text order of equals), again.
function train(preTokenizer, text, size) {
  const vocab = Object.fromEntries(letters.map((letter, id) => [letter, id]));
  const cutter = Tokenizer.fromString(JSON.stringify(shell(vocab, [], preTokenizer))).getPreTokenizer();
  const counts = new Map();
  for (const [word] of cutter.preTokenizeString(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
  let words = [...counts].map(([word, count]) => ({ parts: [...word], count }));
  const merges = [];
  while (Object.keys(vocab).length < size) {
    const pairs = new Map();
    for (const { parts, count } of words)
      for (let i = 0; i + 1 < parts.length; i++) {
        const key = parts[i] + ' ' + parts[i + 1];
        pairs.set(key, (pairs.get(key) ?? 0) + count);
      }
    let best = null;
    for (const [key, count] of pairs) if (!best || count > best[1]) best = [key, count];
    const [left, right] = best[0].split(' ');
    merges.push([left, right]);
    vocab[left + right] ??= Object.keys(vocab).length;
    for (const word of words)
      for (let i = 0; i + 1 < word.parts.length; i++)
        if (word.parts[i] === left && word.parts[i + 1] === right) word.parts.splice(i, 2, left + right);
  }
  return { vocab, merges };
}

function make() {
  const text = readFileSync(trainingFile, 'utf8') + awkward.join('\n').repeat(3);
  const gpt2 = train(byteLevel(true), text, 700);
  const gpt2File = shell(gpt2.vocab, gpt2.merges.map((pair) => pair.join(' ')), byteLevel(true));
  gpt2File.added_tokens = [token(700, '<|endoftext|>', { normalized: true })];

  const llamaPre = { type: 'Sequence', pretokenizers: [split({ Regex: patterns.llama3 }), byteLevel(false)] };
  const llama = train(llamaPre, text, 700);
  // A word that no merge reaches: only ignore_merges finds it.
  llama.vocab['Ġcopyleft'] = 700;
  const llamaFile = shell(llama.vocab, llama.merges, llamaPre, { ignore_merges: true });
  llamaFile.added_tokens = ['<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>'].map((content, i) => token(701 + i, content));

  const qwenPre = { type: 'Sequence', pretokenizers: [split({ Regex: patterns.qwen2 }), byteLevel(false)] };
  const qwen = train(qwenPre, text.normalize('NFC'), 700);
  const qwenFile = shell(qwen.vocab, qwen.merges.map((pair) => pair.join(' ')), qwenPre);
  qwenFile.normalizer = { type: 'NFC' };
  qwenFile.added_tokens = [token(700, '<|endoftext|>'), token(701, '<|im_start|>'), token(702, '<|im_end|>'),
    token(703, 'cafe\u0301-token', { special: false, normalized: true })];

  // What none of the three uses: a put space, digits, text as a separator, tokens that take white space, longest of several.
  const mixedPre = { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true },
    { type: 'Split', pattern: { String: '_' }, behavior: 'Removed', invert: false }, byteLevel(true, true)] };
  const few = Object.fromEntries(Object.entries(gpt2.vocab).filter(([, id]) => id < 400));
  const mixedFile = shell(few, gpt2.merges.filter(([left, right]) => left in few && right in few && left + right in few), mixedPre);
  mixedFile.added_tokens = [token(400, '<left>', { lstrip: true }), token(401, '<right>', { rstrip: true }), token(402, '<both>', { lstrip: true, rstrip: true }),
    token(403, '<long>'), token(404, '<long><longer>', { special: false }), token(405, '<pad>', { special: false, normalized: true })];
  return { gpt2: gpt2File, llama3: llamaFile, qwen2: qwenFile, mixed: mixedFile };
}

mkdirSync(outFolder, { recursive: true });
const cases = { texts: texts.map((text) => Buffer.from(text, 'utf8').toString('base64')) };
for (const [name, file] of Object.entries(make())) {
  writeFileSync(resolve(outFolder, `${name}.json`), JSON.stringify(file));
  const tokenizer = Tokenizer.fromString(JSON.stringify(file));
  cases[name] = [];
  for (const text of texts) cases[name].push((await tokenizer.encode(text, null, { addSpecialTokens: false })).getIds());
}
writeFileSync(resolve(outFolder, 'cases.json'), JSON.stringify(cases).replaceAll('],[', '],\n[') + '\n');
