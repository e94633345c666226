// Help and usage errors. Every command line gets the right exit code and message, and one with wrong arguments runs no
// command.

import * as assert from 'uvu/assert';
import { createProgram } from '../../src/cli/program.js';
import { suite } from '../support/harness.js';
import { uffd } from './support/command.js';

const test = suite('cli/usage');

/** Wrong arguments, and what the error message must contain. */
const WRONG: [string[], RegExp][] = [
  [['demo', '--threads', '0'], /--threads <N>.*'0'.*1 to 256/],
  [['demo', '--threads', '257'], /--threads/],
  [['demo', '--threads', 'NaN'], /--threads/],
  [['demo', '--threads', '-1'], /--threads/],
  [['demo', '--threads', '1.5'], /--threads/],
  [['demo', '--threads', '1e2'], /--threads/],
  [['demo', '--threads', ''], /--threads/],
  [['demo', '--threads', ' 2'], /--threads/],
  [['demo', '--threads', '99999999999999999999'], /--threads/],
  [['demo', '--threads'], /--threads <N>' argument missing/],
  [['demo', '--window', '0'], /--window <N>.*1 to 1048576/],
  [['demo', '--window', '1048577'], /--window/],
  [['demo', '--window', '0x10'], /--window/],
  [['demo', '--wait', 'nap'], /--wait.*poll, block, spin, adaptive/],
  [['demo', '--seed', '-1'], /--seed/],
  [['demo', '--seed', '4294967296'], /--seed/],
  [['demo', '--bogus'], /--bogus/],
  [['demo', '--thread', '2'], /--threads/],
  [['demo', 'one', 'two'], /too many arguments/],
  [['demo', '--pager'], /--pager <URL\|FILE>' argument missing/],
  [['demo', '--pager', 'one', 'two'], /no argument FILE/],
  [['demo', '--pager', 'one', '--wait', 'poll'], /cannot be used with/],
  [['demo', '--pager', 'one', '--record', 'two'], /cannot be used with/],
  [['demo', '--pager', 'one', '--resident', '5X'], /--resident <SIZE>.*'5X'.*at least 1048576/],
  [['demo', '--pager', 'one', '--resident', '1023K'], /--resident/],
  [['demo', '--resident', '64M'], /--resident <SIZE>' needs '--pager/],
  [['demo', '--record'], /--record <FILE>' argument missing/],
  [['pack', '--store', 'one'], /missing required argument 'MEMORY'/],
  [['pack', 'one'], /give either --store STORE or --seekable/],
  [['pack', 'one', '--store', 'two', '--chunk', '5000'], /--chunk must be a multiple of 4096; it is 5000/],
  [['pack', 'one', '--store', 'two', '--digest', 'md5'], /--digest <name>.*sha512-256, sha256/],
  [['pack', 'one', '--store', 'two', '--fallback', 'three'], /unknown option '--fallback'/],
  [['unpack', 'one', '--store', 'two'], /missing required argument 'FILE'/],
  [['verify', 'one', '--store', 'two', '--bandwidth', '10'], /--bandwidth <SIZE>.*at least 1024/],
  [['prune', '--store', 'two'], /missing required argument 'INDEX'/],
  [['prune', 'one', '--store', 'two', '--grace', '5'], /--grace <TIME>.*like 24h/],
  [['replay'], /missing required argument 'FILE'/],
  [['replay', 'one', 'two'], /too many arguments/],
  [['replay', 'one', '--handler', 'missing.js'], /missing\.js cannot be loaded/],
  [['inspect'], /missing required argument 'FILE'/],
  [['inspect', 'one', '--kind', 'nothing'], /no kind 'nothing'/],
  [['inspect', 'one', '--page', '12x'], /must be an address/],
  [['inspect', 'one', '--range', '0x2000-0x1000'], /two addresses/],
  [['inspect', 'one', '--page', '1', '--range', '1-2'], /cannot be used with/],
  [['inspect', 'one', '--from', '-1'], /--from|milliseconds/],
  [['inspect', 'one', '--limit', '-1'], /--limit/],
  [['inspect', 'one', '--perfetto'], /--perfetto <FILE>' argument missing/],
  [['inspect', 'one', '--perfetto', 'two', '--json'], /cannot be used with/],
  [['report'], /missing required argument 'FILE'/],
  [['report', 'one', 'two'], /too many arguments/],
  [['report', 'one', '--output'], /--output <FILE>' argument missing/],
  [['simulate', 'one'], /too many arguments/],
  [['simulate', '--steps', '0'], /--steps/],
  [['simulate', '--seed', '4294967296'], /--seed/],
  [['check-handler'], /the handler's command is missing/],
  [['check-handler', '--', 'handler'], /command must contain \{socket\}/],
  [['check-handler', '--repeat', '0', '--', 'h', '{socket}'], /--repeat <N>.*'0'.*1 to/],
  [['check-handler', '--ready', '(', '--', 'h', '{socket}'], /--ready <PATTERN>/],
  [['check-handler', '--scenario', 'nope', '--', 'h', '{socket}'], /no scenario's name begins with 'nope'/],
  [['check-handler', '--json', '--tap', '--', 'h', '{socket}'], /--json and --tap exclude each other/],
  [['doctor', 'one'], /too many arguments/],
  [['doctor', '--jsn'], /--json/],
  [['nope'], /'nope'/],
  [['--nope'], /--nope/],
];

test('a wrong option or argument is named, and the exit code is 2', async () => {
  for (const [args, message] of WRONG) {
    const { code, stdout, stderr } = await uffd(args);
    assert.is(code, 2, args.join(' '));
    assert.match(stderr, message);
    assert.match(stderr, /^uffd: /);
    assert.is(stdout, '');
    assert.not.match(stderr, /\n\s+at /);
  }
}, 180_000);

test('without a command the help goes to stderr, and the exit code is 2', async () => {
  const { code, stdout, stderr } = await uffd([]);
  assert.is(code, 2);
  assert.is(stdout, '');
  assert.match(stderr, /Usage: uffd/);
});

test('--version', async () => {
  const { code, stdout } = await uffd(['--version']);
  assert.is(code, 0);
  assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
});

test('the help of every command lists every option, the exit codes and an example, in 80 columns', async () => {
  const program = await createProgram([]);
  const top = await uffd(['--help']);
  assert.is(top.code, 0);
  for (const command of program.commands) {
    assert.ok(top.stdout.includes(`  ${command.name()} `), command.name());
    const { code, stdout } = await uffd([command.name(), '--help']);
    assert.is(code, 0);
    for (const option of command.options)
      assert.ok(stdout.includes(option.long as string), option.long as string);
    assert.match(stdout, /Exit codes:\n( {2}\d+ .*\n)+/);
    assert.match(stdout, new RegExp(`Examples:\n {2}uffd ${command.name()}`));
    for (const line of stdout.split('\n')) assert.ok(line.length <= 80, line);
  }
});

test.run();
