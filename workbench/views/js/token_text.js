// Tokens as text: what each reads as, characters that several tokens make up, white space to see.

// Bytes that are a part of a character come as lone surrogates U+DC80 to U+DCFF (Python's PEP 383).
const PARTS_OF = /(?<![\ud800-\udbff])[\udc80-\udcff]/;

/** What tokens read as, by id. */
export class TokenTexts {
  constructor({ known_ids, known_texts }) {
    this.texts = new Map(Array.from(known_ids, (id, place) => [id, known_texts[place]]));
  }

  /** A token by itself, for people: white space to see, bytes as numbers, an unknown one's id. */
  shown(id) {
    if (id < 0) return "?";
    const text = this.texts.get(id);
    return text === undefined ? `<${id}>` : numbered(visible(text));
  }

  /**
   * Tokens in a row: a text for each. Where some make up one character, the last of them has it
   * and the others are empty; bytes that make up none are shown as numbers.
   */
  run(ids) {
    const found = ids.map((id) => this.texts.get(id) ?? this.shown(id));
    for (let place = 0; place < found.length; place++) {
      if (!PARTS_OF.test(found[place])) continue;
      let joint = "";
      let end = place;
      while (end < found.length && end < place + 8) {
        joint += found[end++];
        const whole = decoded(joint);
        if (whole === null) continue;
        found.fill("", place, end - 1);
        found[end - 1] = whole;
        break;
      }
      if (PARTS_OF.test(found[place])) found[place] = numbered(found[place]);
    }
    return found;
  }
}

/** Text with its lone bytes read as UTF-8; null if they are none, or not yet. */
function decoded(text) {
  const bytes = [];
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
    else bytes.push(...new TextEncoder().encode(character));
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** Lone bytes as numbers. */
function numbered(text) {
  return text.replace(new RegExp(PARTS_OF, "g"), (byte) =>
    `<${(byte.charCodeAt(0) - 0xdc00).toString(16).toUpperCase()}>`);
}

/** White space made visible, for a token that stands by itself. */
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
}

/** At most `length` characters, with an ellipsis for the rest. */
export function shortened(text, length) {
  const characters = [...text];
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}
