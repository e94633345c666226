// The core's module, which the page carries beside its script. Bundled in place of `#wasm`.

import { bytesIn } from './embedded.js';

export default bytesIn('core');
