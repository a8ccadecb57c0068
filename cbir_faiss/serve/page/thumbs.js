/* Thumbnails on their way, a few at a time: a browser has six connections to a server, and a search must find one free.
   What has left the page by its turn is not asked for. */

const MOST = 4;
const made = []; // [image, src], of this moment
const waiting = []; // those that are on the page, in the order in which they are wanted
let loading = 0;

/** Have `image` show `src` when it is its turn. */
export function load(image, src) {
  if (!made.length) queueMicrotask(line);
  made.push([image, src]);
}

function line() {
  for (const [image, src] of made.splice(0))
    if (image.isConnected) waiting.push([image, src]);
    else image.src = src; // it will be put somewhere, and nobody tells when
  next();
}

function next() {
  while (waiting.length && loading < MOST) {
    const [image, src] = waiting.shift();
    if (image.isConnected) begin(image, src);
  }
}

function begin(image, src) {
  const done = () => {
    loading--;
    next();
  };
  loading++;
  for (const event of ["load", "error"]) image.addEventListener(event, done, { once: true });
  image.src = src;
}
