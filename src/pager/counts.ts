// The names of what the pager counts.

import { PagerCounts } from '../bindings/pager.js';

/** The counts of `PagerCounts`, in its order. */
export const COUNTS = Object.keys(PagerCounts).slice(1) as Exclude<keyof typeof PagerCounts, 'sizeof'>[];
