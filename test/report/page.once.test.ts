// The report in Chromium: it opens from a file without console messages and without network access, shows the numbers
// of `uffd inspect --json`, and its controls work.

import type { Page } from 'playwright-core';
import * as assert from 'uvu/assert';
import { SimulatedKernel } from '../../src/sim/index.js';
import { suite } from '../support/harness.js';
import { record } from '../trace/support/traces.js';
import { addressOf, colorful, FAR, faultsIn, inView, opened } from './support/browser.js';

const test = suite('report/page');

/** The element of the heat map that gets the pointer's events. */
const MAP = '#map .u-over';

async function middleOf(
  page: Page,
  selector: string,
): Promise<{ x: number; y: number; width: number; height: number }> {
  await page.locator(selector).scrollIntoViewIfNeeded();
  const box = (await page.locator(selector).boundingBox()) ?? { x: 0, y: 0, width: 0, height: 0 };
  return { ...box, x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

/** Waits until an element's text matches. */
async function says(page: Page, selector: string, what: RegExp): Promise<void> {
  await page.waitForFunction(
    ([selector, source]) =>
      new RegExp(source as string).test(document.querySelector(selector as string)?.textContent ?? ''),
    [selector, what.source],
  );
}

/** How many pixels of the heat map have about the colour of a sort of events. */
function painted(page: Page, sort: string): Promise<number> {
  return page.evaluate((name) => {
    const canvas = document.querySelector<HTMLCanvasElement>('#map canvas') as HTMLCanvasElement;
    const style = getComputedStyle(document.documentElement);
    const rgb = (variable: string): number[] => {
      const value = Number.parseInt(style.getPropertyValue(variable).trim().slice(1), 16);
      return [value >> 16, (value >> 8) & 255, value & 255];
    };
    const wanted = rgb(`--${name}`);
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext('2d', { willReadFrequently: true }) as OffscreenCanvasRenderingContext2D;
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) {
      // Cells differ in opacity only. The canvas stores the same colour for all.
      const near = wanted.every((part, index) => Math.abs(part - (data[at + index] as number)) <= 3);
      if (near && (data[at + 3] as number) > 100) count++;
    }
    return count;
  }, sort);
}

for (const [name, trace] of [
  ['a trace with everything in it', () => colorful()],
  ['a run of the simulated kernel', () => record(new SimulatedKernel({ seed: 3 }), { touches: 300 })],
  ['a trace in which nothing happened', () => colorful(0)],
  ['a trace that was cut', () => colorful(20_000).subarray(0, -40)],
] as const) {
  test(`${name}: the numbers are those of uffd inspect`, async () => {
    await opened(trace(), async ({ page, summary }) => {
      const shown = await page
        .locator('[data-field]')
        .evaluateAll((all) =>
          all.map((one) => [one.getAttribute('data-field'), one.getAttribute('data-value'), one.textContent]),
        );
      assert.ok(shown.length >= 11);
      for (const [field = '', value, text] of shown as [string, string, string][]) {
        const path = field.split('.');
        const found = path.reduce<unknown>((from, key) => (from as Record<string, unknown>)[key], summary);
        const sum = (counts: object): number => Object.values(counts).reduce((all, count) => all + count, 0);
        const expected = typeof found === 'object' ? sum(found as object) : (found as number);
        assert.is(Number(value), expected, field);
        if (!/Us|Ms/.test(field)) assert.is(text, expected.toLocaleString('en-US'), field);
      }
      const line = await inView(page);
      assert.is(faultsIn(line), summary.faults);
      assert.match(await page.title(), /^run\.trace/);
      const damage = page.locator('.damage');
      assert.is(await damage.count(), summary.damage === undefined ? 0 : 1);
      if (summary.damage) assert.ok((await damage.textContent())?.includes(summary.damage as string));
    });
  });
}

test('the heat map shows four sorts in their colours, and each can be switched off', async () => {
  await opened(colorful(), async ({ page }) => {
    for (const sort of ['read', 'write', 'removed', 'prefetched']) {
      assert.ok((await painted(page, sort)) > 20, sort);
      await page.locator(`#map .legend .${sort}`).click();
      await page.waitForFunction((name) => {
        const toggle = document.querySelector(`#map .legend .${name}`);
        return toggle?.getAttribute('aria-pressed') === 'false';
      }, sort);
      assert.is(await painted(page, sort), 0, sort);
    }
  });
});

test('an event of the list is shown on the map, and the pointer over it says what it is', async () => {
  await opened(colorful(), async ({ page }) => {
    await page.locator('input[type=search]').fill(`${addressOf(FAR + 7)} write`);
    await says(page, '#events .told', /^1 of /);
    const row = page.locator('#events [role=option]').first();
    const latency = await row.locator('.latency').textContent();
    await row.click();
    await page.waitForFunction(() => document.querySelector('#in-view')?.textContent?.includes('–'));
    const { x, y } = await middleOf(page, MAP);
    await page.mouse.move(x, y);
    const box = page.locator('.hover');
    await box.waitFor();
    const text = (await box.innerText()).replaceAll('\n', '; ');
    assert.match(
      text,
      new RegExp(`^write at [\\d.]+ ms; ${addressOf(FAR + 7)}; thread 101; let go after ${latency}$`),
    );
    await page.mouse.move(x, y - 2000);
    await box.waitFor({ state: 'hidden' });
  });
});

test('drag, wheel, buttons and keys zoom and pan; what is in view follows, and comes back', async () => {
  await opened(colorful(), async ({ page, summary }) => {
    const all = await inView(page);
    const { x, y, width, height } = await middleOf(page, MAP);
    const narrowed = async (before: string): Promise<string> => {
      const line = await inView(page, before);
      assert.ok(faultsIn(line) > 0 && faultsIn(line) < faultsIn(before), `${before} → ${line}`);
      return line;
    };
    // Select a quarter of the time, and only the lower region.
    await page.mouse.move(x - width / 8, y + height / 20);
    await page.mouse.down();
    await page.mouse.move(x + width / 8, y + height / 2 - 2, { steps: 4 });
    await page.mouse.up();
    const dragged = await narrowed(all);
    assert.ok(Math.abs(faultsIn(dragged) - (summary.faults as number) / 4) <= 2, dragged);
    await says(page, '#events .told', /^[1-9]/);
    const addresses = await page.locator('#events [role=option] .address').allTextContents();
    assert.ok(addresses.length > 5 && addresses.every((address) => address < addressOf(FAR)));
    await page.keyboard.down('Control');
    await page.mouse.wheel(0, -100);
    await page.keyboard.up('Control');
    const wheeled = await narrowed(dragged);
    await page.keyboard.press('+');
    const keyed = await narrowed(wheeled);
    await page.keyboard.press('ArrowRight');
    const panned = await inView(page, keyed);
    await page.keyboard.down('Shift');
    await page.mouse.move(x, y);
    await page.mouse.down();
    await page.mouse.move(x + 60, y, { steps: 3 });
    await page.mouse.up();
    await page.keyboard.up('Shift');
    await inView(page, panned);
    await page.keyboard.press('0');
    await says(page, '#in-view', /^All: /);
    assert.is(await page.locator('#in-view').textContent(), all);
    await page.locator('button[aria-label="Zoom in"]').click();
    await narrowed(all);
    await page.locator('button[aria-label="Show all"]').click();
    await says(page, '#in-view', /^All: /);
    await page.locator('#hottest button').first().click();
    await says(page, '#events .told', /^[1-9]/);
    await page.keyboard.press('Escape');
    await says(page, '#in-view', /^All: /);
  });
});

test('the wheel alone scrolls the page; over the heat map it zooms once that has the focus', async () => {
  await opened(colorful(), async ({ page }) => {
    const all = await inView(page);
    for (const [focused, over] of [
      ['body', MAP],
      ['input[type=search]', '#latency .u-over'],
      ['input[type=search]', MAP],
    ] as const) {
      await page.locator(focused).focus();
      const { x, y } = await middleOf(page, over);
      const before = await page.evaluate(() => scrollY);
      await page.mouse.move(x, y);
      await page.mouse.wheel(0, before > 0 ? -5 : 5);
      await page.waitForFunction((from) => scrollY !== from, before);
      assert.is(await inView(page), all, `${over} while ${focused} has the focus`);
    }
    await page.locator('.map').focus();
    const { x, y } = await middleOf(page, MAP);
    await page.mouse.move(x, y);
    await page.mouse.wheel(0, -100);
    assert.ok(faultsIn(await inView(page, all)) < faultsIn(all));
  });
});

test('a selection on a chart zooms all of them', async () => {
  await opened(colorful(), async ({ page }) => {
    const all = await inView(page);
    const { x, y, width } = await middleOf(page, '#latency .u-over');
    await page.mouse.move(x, y);
    await page.mouse.down();
    await page.mouse.move(x + width / 4, y, { steps: 3 });
    await page.mouse.up();
    assert.ok(faultsIn(await inView(page, all)) < faultsIn(all));
    // The legend shows the values under the pointer.
    await says(page, '#latency .u-legend', /p50:?\s*\d+ µs/);
  });
});

test('fingers pan and pinch', async () => {
  await opened(
    colorful(),
    async ({ page }) => {
      const all = await inView(page);
      const { x, y } = await middleOf(page, MAP);
      const session = await page.context().newCDPSession(page);
      const touch = (type: 'touchStart' | 'touchMove' | 'touchEnd', ...xs: number[]): Promise<unknown> =>
        session.send('Input.dispatchTouchEvent', {
          type,
          touchPoints: xs.map((at, id) => ({ x: at, y, id })),
        });
      await touch('touchStart', x - 40, x + 40);
      for (const far of [60, 80, 100, 120]) await touch('touchMove', x - far, x + far);
      await touch('touchEnd');
      const pinched = await inView(page, all);
      assert.ok(faultsIn(pinched) < faultsIn(all) / 2, pinched);
      await touch('touchStart', x);
      for (const at of [15, 30, 60]) await touch('touchMove', x - at);
      await touch('touchEnd');
      const panned = await inView(page, pinched);
      const begins = (line: string): number => Number.parseFloat(line);
      assert.ok(begins(panned) > begins(pinched), `${pinched} → ${panned}`);
    },
    { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true },
  );
});

test('the search: opened with /, shows the number of matches, names unknown words, cleared with Escape', async () => {
  await opened(colorful(), async ({ page }) => {
    await says(page, '#events .told', /^360 of 360 events$/);
    await page.keyboard.press('/');
    await page.keyboard.type('thread 101 read');
    await says(page, '#events .told', /^100 of 360 events$/);
    const rows = page.locator('#events [role=option]');
    assert.ok((await rows.locator('.what').allTextContents()).every((text) => text === 'read'));
    await page.locator('select').selectOption('latency');
    await says(page, '#events [role=option] .latency', /^309 µs$/);
    await page.locator('input[type=search]').fill('elephants');
    await says(page, '#events .told', /'elephants' means nothing/);
    assert.is(await page.locator('input[type=search]').getAttribute('aria-invalid'), 'true');
    await page.keyboard.press('Escape');
    await says(page, '#events .told', /^360 of 360 events$/);
  });
});

test('a long list has few elements, and can be gone through with the keyboard to its end', async () => {
  await opened(colorful(20_000), async ({ page, summary }) => {
    await says(page, '#events .told', /^24,000 of 24,000/);
    const rows = page.locator('#events [role=option]');
    assert.ok((await rows.count()) < 30);
    await page.locator('#events .rows').evaluate((list) => list.scrollTo(0, list.scrollHeight));
    await says(page, '#events [role=option]:last-child', /20000|20 s/);
    await page.locator('#events .rows').focus();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelector('#in-view')?.textContent?.includes('–'));
    // The event stays selected when others around it are no longer in view.
    await says(page, '#events .told', /^(?!24,000)/);
    await says(page, '#events [aria-selected=true] .time', /^(19\.9\d*|20) s$/);
    assert.is(summary.faults, 20_000);
  });
});

test('a trace that is dropped is shown in place of the other; what is none is refused', async () => {
  await opened(colorful(), async ({ page }) => {
    const drop = (name: string, bytes: number[]): Promise<void> =>
      page.evaluate(
        ([name, bytes]) => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes as number[])], name as string));
          dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
        },
        [name, bytes] as const,
      );
    await drop('other.trace', [...colorful(50)]);
    await says(page, '[data-field=faults]', /^50$/);
    assert.is(await page.locator('header .name').textContent(), 'other.trace');
    await says(page, '#in-view', /^All: 50 faults/);
    await drop('<b>none', [1, 2, 3]);
    await says(page, '.damage', /^<b>none cannot be shown: this is no trace/);
    await page.locator('input[type=file]').setInputFiles({
      name: 'chosen.trace',
      mimeType: 'application/octet-stream',
      buffer: Buffer.from(colorful(30)),
    });
    await says(page, '[data-field=faults]', /^30$/);
  });
});

test('light and dark follow the system until one is chosen', async () => {
  await opened(
    colorful(),
    async ({ page }) => {
      const background = (): Promise<string> =>
        page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const dark = await background();
      await page.emulateMedia({ colorScheme: 'light' });
      // The page changes its colours only after it gets the event.
      await page.waitForFunction(
        (before) => getComputedStyle(document.body).backgroundColor !== before,
        dark,
      );
      const button = page.locator('header .icon');
      assert.match((await button.getAttribute('aria-label')) as string, /system/);
      await button.click();
      await button.click();
      assert.is(await button.getAttribute('aria-label'), 'Theme: dark');
      assert.is(await background(), dark);
      assert.ok((await painted(page, 'read')) > 20);
    },
    { colorScheme: 'dark' },
  );
});

test('from 360 pixels on nothing is cut off at the side, and times lie one below the other', async () => {
  await opened(colorful(), async ({ page }) => {
    for (const width of [1920, 1280, 768, 390, 360]) {
      await page.setViewportSize({ width, height: 800 });
      // The charts change their width only after the layout of the page.
      await page.waitForFunction(() => {
        const lefts = [...document.querySelectorAll('.u-over')].map((one) => one.getBoundingClientRect());
        const aligned = lefts.every(
          ({ left, right }) => left === lefts[0]?.left && right === lefts[0]?.right,
        );
        return lefts.length === 4 && aligned && document.documentElement.scrollWidth <= innerWidth;
      });
      const names = await page
        .locator('button')
        .evaluateAll((all) => all.map((one) => one.getAttribute('aria-label') ?? one.textContent));
      assert.ok(names.every((name) => name !== null && name.trim() !== ''));
    }
  });
});

test.run();
