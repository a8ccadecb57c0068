/* Thumbnails on their way, a few at a time: a browser has six connections to a server, and a search must find one free.
   What has left the page is not asked for, and not waited for; nobody puts it back. */

const MOST = 4;
const made = []; // [image, src], of this moment
const waiting = []; // those that are on the page, in the order in which they are wanted
const loading = new Set();

/** Have `image` show `src` when it is its turn. */
export function load(image, src) {
  if (!made.length) queueMicrotask(line);
  made.push([image, src]);
}

function line() {
  for (const [image, src] of made.splice(0))
    if (image.isConnected) waiting.push([image, src]);
    else image.src = src; // it will be put somewhere, and nobody tells when
  for (const image of loading)
    if (!image.isConnected) {
      loading.delete(image);
      image.removeAttribute("src"); // its connection is free for the others
    }
  next();
}

function next() {
  while (waiting.length && loading.size < MOST) {
    const [image, src] = waiting.shift();
    if (image.isConnected) begin(image, src);
  }
}

function begin(image, src) {
  const done = () => {
    loading.delete(image);
    next();
  };
  loading.add(image);
  for (const event of ["load", "error"]) image.addEventListener(event, done, { once: true });
  image.src = src;
}
