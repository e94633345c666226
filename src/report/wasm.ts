// The core's module, in an element of the page. Bundled in place of `#wasm`.

import { bytesIn } from './embedded.js';

export default bytesIn('core');
