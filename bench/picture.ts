// `node build/bench/picture.js`: draws docs/demo.svg, a terminal in which `uffd demo` has just ended. It runs the demo
// on a terminal that script(1) makes, and draws the final screen.
//
//   node build/bench/picture.js [--file FILE] [OUT]     default: the Node binary, docs/demo.svg

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import xterm from '@xterm/headless';

const COLUMNS = 80;
const ROWS = 60;
/** Sizes of a character, and of the margin. */
const WIDTH = 8;
const HEIGHT = 18;
const MARGIN = 16;
/** Styles for light and dark pages. Class `c1` is the terminal's red, `c2` its green. */
const STYLE = `
  svg{font:13px/1 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
  rect{fill:#f6f8fa;stroke:#d0d7de}text{fill:#1f2328;white-space:pre}.c1{fill:#cf222e}.c2{fill:#1a7f37}
  @media (prefers-color-scheme:dark){rect{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}.c1{fill:#ff7b72}.c2{fill:#3fb950}}
`;

const uffd = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));

/** The output of the demo on a terminal. The demo runs in a folder with a link to the file, so it shows no path. */
function runDemo(file: string): { command: string; output: string } {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-picture-'));
  try {
    const name = basename(file);
    symlinkSync(resolve(file), join(folder, name));
    const quoted = [process.execPath, uffd, 'demo', name].map((word) => `'${word.replaceAll("'", "'\\''")}'`);
    const { status, stdout, stderr } = spawnSync(
      'script',
      ['-qec', `stty cols ${COLUMNS} rows ${ROWS}; ${quoted.join(' ')}`, '/dev/null'],
      { cwd: folder, encoding: 'utf8', env: { ...process.env, TERM: 'xterm-256color', FORCE_COLOR: '1' } },
    );
    if (status !== 0) throw new Error(`uffd demo failed: ${stdout}${stderr}`);
    return { command: `npx uffd demo ${name}`, output: stdout };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Characters of one colour, side by side. */
interface Piece {
  column: number;
  text: string;
  /** The terminal's number of the colour; −1: the default colour. */
  color: number;
}

/** The final screen, line by line. */
async function screenAfter(output: string): Promise<Piece[][]> {
  const terminal = new xterm.Terminal({ cols: COLUMNS, rows: ROWS, allowProposedApi: true });
  await new Promise<void>((done) => terminal.write(output, done));
  const { active } = terminal.buffer;
  const lines: Piece[][] = [];
  for (let row = 0; row < active.length; row++) {
    const line: Piece[] = [];
    for (let column = 0; column < COLUMNS; column++) {
      const cell = active.getLine(row)?.getCell(column);
      const text = cell?.getChars() || ' ';
      const color = cell?.isFgPalette() ? cell.getFgColor() : -1;
      const last = line.at(-1);
      if (last?.color === color) last.text += text;
      else line.push({ column, text, color });
    }
    lines.push(
      line.map((piece) => ({ ...piece, text: piece.text.trimEnd() })).filter(({ text }) => text !== ''),
    );
  }
  while (lines.at(-1)?.length === 0) lines.pop();
  return lines;
}

function draw(lines: readonly Piece[][]): string {
  const columns = Math.max(...lines.flat().map(({ column, text }) => column + text.length));
  const [width, height] = [columns * WIDTH + 2 * MARGIN, lines.length * HEIGHT + 2 * MARGIN];
  const escaped = (text: string): string =>
    text.replace(/[&<>]/g, (character) => `&#${character.charCodeAt(0)};`);
  const texts = lines.flatMap((line, row) =>
    line.map(({ column, text, color }) => {
      const style = color < 0 ? '' : ` class="c${color}"`;
      // Give the length, so that columns line up in any font.
      const place = `x="${MARGIN + column * WIDTH}" y="${MARGIN + row * HEIGHT + 13}" textLength="${text.length * WIDTH}"`;
      return `<text${style} ${place} lengthAdjust="spacingAndGlyphs">${escaped(text)}</text>`;
    }),
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`,
    '<title>A terminal in which uffd demo has ended</title>',
    `<style>${STYLE}</style>`,
    `<rect x=".5" y=".5" width="${width - 1}" height="${height - 1}" rx="6"/>`,
    ...texts,
    '</svg>\n',
  ].join('\n');
}

const { values, positionals } = parseArgs({
  options: { file: { type: 'string', default: process.execPath } },
  allowPositionals: true,
});
const { command, output } = runDemo(values.file);
writeFileSync(positionals[0] ?? 'docs/demo.svg', draw(await screenAfter(`$ ${command}\r\n${output}`)));
