/* What all views have in common. A view has an `element`; `update(route)` shows a state, and `close` ends it.

   Where one photo can be opened over it, `known(id)` is what it knows of an item, and `beside(id, step)` the item that
   is so many places further, or a promise of it. */

export class View {
  /** The signal of a new update; the one before is given up. */
  begin() {
    this.leave?.abort();
    this.leave = new AbortController();
    return this.leave.signal;
  }

  close() {
    this.leave?.abort();
  }
}
