// What the page keeps of an account: messages, what was read, and what is still to be sent. It is bounded, and in localStorage.
const mostMessages = 500, longest = 8000;

export class Store {
  constructor(account) {
    this.name = "push:" + account;
    try { this.data = JSON.parse(localStorage.getItem(this.name)); } catch { /* begin anew */ }
    this.data ??= { messages: [], read: {}, outbox: [] };
  }
  save() {
    const d = this.data;
    if (d.messages.length > mostMessages) d.messages.splice(0, d.messages.length - mostMessages);
    while (d.messages.length) {
      try { localStorage.setItem(this.name, JSON.stringify(d)); return; } catch { d.messages.splice(0, Math.ceil(d.messages.length / 4)); }
    }
    localStorage.setItem(this.name, JSON.stringify(d));
  }
  // add keeps a message, and says whether it is new.
  add(m) {
    if (this.data.messages.some((x) => x.id === m.id || m.ref && x.ref === m.ref && x.from === m.from)) {
      const mine = this.data.messages.find((x) => m.ref && x.ref === m.ref && x.from === m.from);
      if (mine) { mine.state = ""; this.save(); }
      return false;
    }
    m.body = m.body.slice(0, longest);
    this.data.messages.push(m);
    this.save();
    return true;
  }
  of(chat) { return this.data.messages.filter((m) => m.chat === chat); }
  unread(chat) { return this.data.messages.filter((m) => m.chat === chat && !m.mine && m.at > (this.data.read[chat] ?? 0)).length; }
  markRead(chat) {
    const last = this.of(chat).at(-1);
    if (last && this.data.read[chat] !== last.at) { this.data.read[chat] = last.at; this.save(); }
  }
  // settle says what became of a message of one's own.
  settle(ref, state) {
    const m = this.data.messages.find((x) => x.ref === ref && x.mine);
    if (m) m.state = state;
    this.data.outbox = this.data.outbox.filter((x) => x.ref !== ref);
    this.save();
  }
}
