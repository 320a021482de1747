// Two OpenSeadragon viewers that show one place: a pane each, and the lock between them.
//
// The world of both is the field: x from 0 to 1 over its width, y in the same unit. A view is its centre and `unit`, how many
// screen (CSS) pixels that width takes.

/* global OpenSeadragon */

const SVG = "http://www.w3.org/2000/svg";
const TILE = 512;
const STILL = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
const FINEST = 8; // a level-0 pixel grows to at most so many screen pixels

const point = (x, y) => new OpenSeadragon.Point(x, y);

/** A pane: a viewer with the layers of its slides, and marks drawn over it. */
export class Pane {
  constructor(element) {
    this.element = element;
    this.view = element.querySelector(".view");
    this.marks = element.querySelector(".marks");
    this.trouble = element.querySelector(".trouble");
    this.layers = new Map(); // name -> TiledImage, or a promise of it
    this.failed = []; // {layer, box: [left, top, right, bottom] of the world}
    this.regions = [];
    this.cursor = null;
    this.viewer = OpenSeadragon({
      element: this.view,
      drawer: "canvas", // shows the same pixels with and without a graphics card
      showNavigationControl: false,
      keyboardNavEnabled: false, // the page has its own keys, for both panes
      autoResize: false, // the lock sizes both
      visibilityRatio: 0.1,
      imageLoaderLimit: 4,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      animationTime: STILL ? 0.01 : 0.4,
      springStiffness: 9,
      maxTilesPerFrame: 4,
      tabIndex: "-1",
    });
    this.viewer.addHandler("tile-load-failed", (event) => this.tileFailed(event));
    this.viewer.addHandler("update-viewport", () => this.drawMarks());
  }

  /** Add a layer: a slide at `share` of the field's width, its tiles from `address`. Resolves when it is there. */
  add(name, sheet, address) {
    const levels = Math.max(0, Math.ceil(Math.log2(Math.max(sheet.width, sheet.height) / TILE)));
    const getTileUrl = (level, x, y) => `${address}/${levels - level}/${x}_${y}?v=${sheet.version}`;
    const transparent = name === "uncertainty" || sheet.clipped;
    const source = {
      width: sheet.width, height: sheet.height, tileSize: TILE, tileOverlap: 1, minLevel: 0, maxLevel: levels, getTileUrl,
      hasTransparency: () => transparent,
    };
    const ready = new Promise((resolve, reject) => {
      const item = { tileSource: source, x: 0, y: 0, width: sheet.share, opacity: 0 };
      this.viewer.addTiledImage({ ...item, success: (event) => resolve(event.item), error: reject });
    });
    return ready.then((item) => {
      this.layers.set(name, item);
      item.addHandler("fully-loaded-change", () => this.tellBusy());
    });
  }

  tellBusy() {
    const busy = this.shown?.some((name) => this.layers.get(name)?.getFullyLoaded() === false);
    this.element.setAttribute("aria-busy", String(Boolean(busy)));
  }

  /** Show these layers and no others. */
  show(names) {
    this.shown = names;
    for (const [name, item] of this.layers) item.setOpacity(names.includes(name) ? 1 : 0);
    this.tellTrouble();
    this.tellBusy();
    this.drawMarks();
  }

  tell(message) {
    this.message = message;
    this.tellTrouble();
  }

  tellTrouble() {
    const failed = this.failed.filter((one) => this.shown?.includes(one.layer));
    const reasons = [...new Set(failed.map((one) => one.reason).filter(Boolean))];
    const count = failed.length === 1 ? "A tile" : `${failed.length} tiles`;
    const tiles = failed.length ? `${count} cannot be read. ${reasons[0] ?? ""}` : "";
    this.trouble.textContent = this.message || tiles;
    this.trouble.hidden = !this.trouble.textContent;
  }

  tileFailed({ tile, tiledImage }) {
    const layer = [...this.layers].find(([, item]) => item === tiledImage)?.[0];
    const bounds = tiledImage.source.getTileBounds(tile.level, tile.x, tile.y);
    const width = tiledImage.getBounds().width;
    const box = [bounds.x, bounds.y, bounds.x + bounds.width, bounds.y + bounds.height].map((v) => v * width);
    const one = { layer, box, reason: "" };
    this.failed.push(one);
    this.tellTrouble();
    this.drawMarks();
    // An image says nothing of why it failed, so its address is asked once more; for a few, since the reason is mostly one.
    if (this.failed.length > 8) return;
    fetch(tile.getUrl())
      .then((answer) => answer.text().then((text) => (answer.ok ? "" : text.trim())))
      .catch(() => "The server does not answer: is it still running?")
      .then((reason) => {
        one.reason = reason;
        this.tellTrouble();
      });
  }

  /** The regions that could not be read, tiles that cannot be, and the other pane's cursor, over the image. */
  drawMarks() {
    const nothing = !this.failed.length && !this.regions.length && !this.cursor;
    if (!this.viewer.viewport || (nothing && !this.marks.firstChild)) return;
    const at = ([x, y]) => {
      const p = this.viewer.viewport.viewportToViewerElementCoordinates(point(x, y));
      return `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
    };
    const ring = (places) => `M${places.map(at).join("L")}Z`;
    const tiles = this.failed
      .filter((one) => this.shown?.includes(one.layer))
      .map(({ box: [l, t, r, b] }) => ring([[l, t], [r, t], [r, b], [l, b]]));
    const paths = this.regions.map((polygon) => polygon.map(ring).join(""));
    const drawn = [...paths.map((d) => ["region", d]), ...tiles.map((d) => ["damaged", d])].map(([kind, d]) => {
      const path = document.createElementNS(SVG, "path");
      const values = { class: kind, d, fill: "url(#hatch)", "fill-rule": "evenodd" };
      for (const [name, value] of Object.entries(values)) path.setAttribute(name, value);
      return path;
    });
    if (this.cursor) {
      const cross = document.createElementNS(SVG, "path");
      const [x, y] = at(this.cursor).split(" ").map(Number);
      cross.setAttribute("class", "cursor");
      cross.setAttribute("d", `M${x - 9} ${y}H${x - 3}M${x + 3} ${y}H${x + 9}M${x} ${y - 9}V${y - 3}M${x} ${y + 3}V${y + 9}`);
      drawn.push(cross);
    }
    this.marks.replaceChildren(...drawn);
  }

  get size() {
    return [this.view.clientWidth || 1, this.view.clientHeight || 1];
  }

  /** Where the pane is, as it is drawn in this frame. */
  get place() {
    const viewport = this.viewer.viewport;
    const centre = viewport.getCenter(true);
    return { x: centre.x, y: centre.y, unit: viewport.getZoom(true) * viewport.getContainerSize().x };
  }

  /** Go to a place at once. */
  put({ x, y, unit }) {
    const viewport = this.viewer.viewport;
    viewport.zoomTo(unit / viewport.getContainerSize().x, null, true);
    viewport.panTo(point(x, y), true);
  }

  resize() {
    const [width, height] = this.size;
    this.viewer.viewport.resize(point(width, height), false);
    this.viewer.forceRedraw();
  }

  limit(least, most) {
    const viewport = this.viewer.viewport;
    viewport.minZoomLevel = least / viewport.getContainerSize().x;
    viewport.maxZoomLevel = most / viewport.getContainerSize().x;
  }
}

/** Keeps panes at one place: whichever is moved leads, the others are put where it is in every frame. */
export class Lock {
  constructor(panes, field, changed) {
    this.panes = panes;
    this.field = field; // {width, height, coarsest, finest}: pixels, and bounds of `unit`
    this.changed = changed;
    this.leader = panes[0];
    this.following = false;
    for (const pane of panes) {
      const lead = () => (this.leader = pane);
      for (const kind of ["pointerdown", "wheel", "touchstart"]) {
        pane.view.addEventListener(kind, lead, { capture: true, passive: true });
      }
      pane.viewer.addHandler("viewport-change", () => this.follow(pane));
    }
  }

  get place() {
    return this.leader.place;
  }

  follow(pane) {
    if (pane !== this.leader || this.following) return;
    this.following = true;
    for (const other of this.panes) if (other !== pane) other.put(pane.place);
    this.following = false;
    this.changed();
  }

  /** All panes to a place at once. */
  put(place) {
    this.following = true;
    for (const pane of this.panes) pane.put(place);
    this.following = false;
    this.changed();
  }

  /** The panes have other sizes: the same place in them. */
  resize(place = this.place) {
    this.following = true;
    for (const pane of this.panes) pane.resize();
    this.following = false;
    for (const pane of this.panes) pane.limit(...this.bounds());
    this.put(place);
  }

  /** How many screen pixels the field's width may take. */
  bounds() {
    const fit = this.fitted().unit;
    return [Math.min(fit / 2, this.field.coarsest), Math.max(fit, this.field.finest)];
  }

  /** The place that shows the whole field. */
  fitted() {
    const [width, height] = this.leader.size;
    const shape = this.field.height / this.field.width;
    return { x: 0.5, y: shape / 2, unit: 0.96 * Math.min(width, height / shape) };
  }

  zoomTo(unit) {
    const [least, most] = this.bounds();
    const viewport = this.leader.viewer.viewport;
    viewport.zoomTo(Math.min(Math.max(unit, least), most) / viewport.getContainerSize().x);
    viewport.applyConstraints();
  }

  moveBy(x, y) {
    const viewport = this.leader.viewer.viewport;
    viewport.panBy(viewport.deltaPointsFromPixels(point(x, y)));
    viewport.applyConstraints();
  }
}

export { FINEST, point };
