// The chart of one symbol and interval: it holds the rows, and the library draws them.

import { decimals, grouped } from "./format.js";
import { isUnsure } from "./live.js";
import { PriceLine } from "./priceline.js";

/* global LightweightCharts */
const { createChart, CandlestickSeries, HistogramSeries, CrosshairMode } = LightweightCharts;

const UP = "#2ebd85";
const DOWN = "#f6465d";
const UP_VOLUME = "rgba(46, 189, 133, 0.38)";
const DOWN_VOLUME = "rgba(246, 70, 93, 0.38)";
const UNSURE = "#e8b339";
const UNSURE_BODY = "rgba(232, 179, 57, 0.45)";
const SPACING_PX = 8;
const MARGIN_KLINES = 6;
const OLDER_AT = 60; // Klines left of the view when older ones are fetched.

export class KlineChart {
  /** The klines drawn, ascending by open time. */
  rows = [];
  #places = new Map();
  #precision = -1;
  #hovered = null;
  #silentSince = null;
  #silences = [];

  /** `onHover` gets the row under the cursor or null; `onEdge` is called when older rows are wanted. */
  constructor(element, { onHover, onEdge, onScroll }) {
    this.chart = createChart(element, {
      autoSize: true,
      layout: {
        background: { color: "transparent" },
        textColor: "#8f9bab",
        fontFamily: getComputedStyle(document.body).fontFamily,
        fontSize: 12,
        attributionLogo: true,
      },
      grid: { vertLines: { color: "#1a212b" }, horzLines: { color: "#1a212b" } },
      rightPriceScale: { borderColor: "#262e39", scaleMargins: { top: 0.16, bottom: 0.24 } },
      timeScale: {
        borderColor: "#262e39",
        timeVisible: true,
        secondsVisible: false,
        rightOffset: MARGIN_KLINES,
        barSpacing: SPACING_PX,
        minBarSpacing: 0.6,
      },
      crosshair: {
        mode: CrosshairMode.Normal,
        vertLine: { color: "#5b6675", labelBackgroundColor: "#2b3542" },
        horzLine: { color: "#5b6675", labelBackgroundColor: "#2b3542" },
      },
      localization: { locale: "en-GB" },
    });
    this.prices = this.chart.addSeries(CandlestickSeries, {
      upColor: UP, downColor: DOWN, wickUpColor: UP, wickDownColor: DOWN, borderVisible: false,
      // The library's own line is that of the last bar in view.
      lastValueVisible: false, priceLineVisible: false,
    });
    this.line = new PriceLine(this.prices);
    this.volumes = this.chart.addSeries(HistogramSeries, {
      priceScaleId: "volume", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false,
    });
    this.chart.priceScale("volume").applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
    this.chart.subscribeCrosshairMove((event) => {
      const place = event.point && event.time !== undefined ? this.#places.get(event.time * 1000) : undefined;
      this.#hovered = place === undefined ? null : this.rows[place].open_time;
      onHover(this.hovered());
    });
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (!range || !this.rows.length) return;
      if (range.from < OLDER_AT) onEdge();
      onScroll(range.to < this.rows.length - 2);
    });
  }

  last() {
    return this.rows.at(-1) ?? null;
  }

  hovered() {
    const place = this.#places.get(this.#hovered);
    return place === undefined ? null : this.rows[place];
  }

  /** Show the market's last price, a decimal string, and what is left of the kline; grey if it is not live. */
  showPrice(price, tone, left, live) {
    this.line.show(price && { price: Number(price), text: grouped(price), left, tone: live ? tone : "stale" });
  }

  /** Take since when nothing was received (ms, or null), and earlier such times: klines of these look different. */
  setSilence(since, silences) {
    if (since === this.#silentSince && String(silences) === String(this.#silences)) return;
    const before = this.rows.map((row) => this.isUnsure(row));
    this.#silentSince = since;
    this.#silences = silences;
    this.rows.forEach((row, place) => this.isUnsure(row) !== before[place] && this.#draw(row));
  }

  isUnsure(row) {
    return isUnsure(row, this.#silentSince, this.#silences);
  }

  /** Remove all rows, before another symbol or interval. */
  clear() {
    this.#precision = -1;
    this.#hovered = null;
    this.#set([]);
  }

  /** Draw a history in place of the present rows, scrolled to its newest end. */
  replace(rows) {
    this.#set(rows);
    this.showLatest();
  }

  showLatest() {
    this.chart.priceScale("right").applyOptions({ autoScale: true });
    const scale = this.chart.timeScale();
    scale.applyOptions({ barSpacing: SPACING_PX });
    scale.scrollToPosition(MARGIN_KLINES, false);
  }

  /** Merge a history into the present rows, which it replaces. Return false, and do nothing, if rows would be missing. */
  merge(rows) {
    if (!rows.length || !this.rows.length) return false;
    if (rows[0].open_time > this.last().close_time + 1 || rows.at(-1).open_time < this.rows[0].open_time) return false;
    const merged = new Map(this.rows.map((row) => [row.open_time, row]));
    for (const row of rows) merged.set(row.open_time, row);
    this.#set([...merged.values()].sort((a, b) => a.open_time - b.open_time));
    return true;
  }

  /** Put older rows, ascending, before the present ones. */
  prepend(rows) {
    const oldest = this.rows[0]?.open_time ?? Infinity;
    this.#set([...rows.filter((row) => row.open_time < oldest), ...this.rows]);
  }

  /** Draw one live row: the last one, the next one, or a correction of an older one. */
  update(row) {
    const last = this.last();
    const place = this.#places.get(row.open_time);
    if (place === undefined && last && row.open_time < last.open_time) {
      // Older than all that is drawn: it comes with older rows. Else it belongs between two rows.
      if (row.open_time > this.rows[0].open_time) this.merge([row]);
      return;
    }
    if (place === undefined) {
      this.#places.set(row.open_time, this.rows.length);
      this.rows.push(row);
    } else {
      this.rows[place] = row;
    }
    this.#refine([row]);
    this.#draw(row);
  }

  #draw(row) {
    const older = row !== this.last();
    const unsure = this.isUnsure(row);
    this.prices.update(priceOf(row, unsure), older);
    this.volumes.update(volumeOf(row, unsure), older);
  }

  #set(rows) {
    this.rows = rows;
    this.#places = new Map(rows.map((row, place) => [row.open_time, place]));
    this.#refine(rows);
    this.prices.setData(rows.map((row) => priceOf(row, this.isUnsure(row))));
    this.volumes.setData(rows.map((row) => volumeOf(row, this.isUnsure(row))));
  }

  /** Show as many decimals as the prices have; they never shrink while one symbol is shown. */
  #refine(rows) {
    let precision = this.#precision;
    for (const row of rows) precision = Math.max(precision, decimals(row.open), decimals(row.close));
    if (precision > this.#precision) {
      this.#precision = precision;
      this.prices.applyOptions({ priceFormat: { type: "price", precision, minMove: 10 ** -precision } });
    }
  }
}

const priceOf = (row, unsure) => ({
  time: row.open_time / 1000,
  open: Number(row.open),
  high: Number(row.high),
  low: Number(row.low),
  close: Number(row.close),
  ...(unsure && { color: UNSURE_BODY, wickColor: UNSURE, borderColor: UNSURE }),
});

const volumeOf = (row, unsure) => ({
  time: row.open_time / 1000,
  value: Number(row.volume),
  color: unsure ? UNSURE_BODY : Number(row.close) >= Number(row.open) ? UP_VOLUME : DOWN_VOLUME,
});
