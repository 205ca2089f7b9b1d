// The search runs in a worker. Browsers start none for a page that is opened from disk, so that the
// worker's script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    onmessage = null;

    constructor(address) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      this.frame.contentWindow.postMessage = (data) => this.onmessage?.({ data });
      const script = this.frame.contentDocument.createElement("script");
      script.src = address;
      this.ready = new Promise((loaded) => script.addEventListener("load", loaded));
      this.frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow?.onmessage({ data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
