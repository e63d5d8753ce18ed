// Keeps the page for times without a connection.
const files = ["./", "app.js", "mqtt.js", "store.js", "style.css", "icon.svg"];
self.addEventListener("install", (e) => e.waitUntil(caches.open("push-1").then((c) => c.addAll(files)).then(() => self.skipWaiting())));
self.addEventListener("activate", (e) => e.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (e) => {
  const url = new URL(e.request.url);
  if (e.request.method !== "GET" || url.origin !== location.origin || !files.some((f) => new URL(f, registration.scope).pathname === url.pathname)) return;
  e.respondWith(fetch(e.request).then((r) => {
    if (r.ok) { const copy = r.clone(); e.waitUntil(caches.open("push-1").then((c) => c.put(e.request, copy))); }
    return r;
  }, () => caches.match(e.request)));
});
