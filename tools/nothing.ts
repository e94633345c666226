// Replaces, in a bundle, a package that is not used.

export {};
