// The market's last price as a line over the chart, and beside it on the axis, with the time that the kline has left.
//
// It is there wherever the chart is scrolled to. Where the price lies outside of what the axis shows, its label stays at
// the edge.

/* global LightweightCharts */
const { LineStyle } = LightweightCharts;

const COLORS = { up: "#2ebd85", down: "#f6465d", stale: "#6b7685", "": "#6aa8ff" };
const LABEL_PX = 18;

export class PriceLine {
  /** What is shown: {price, text, left, tone}; null for nothing. */
  shown = null;
  #line = null;
  #update = () => {};

  constructor(series) {
    this.series = series;
    const view = (name, offset) => ({
      coordinate: () => this.#coordinate(offset),
      text: () => this.shown?.[name] ?? "",
      textColor: () => "#ffffff",
      backColor: () => COLORS[this.shown?.tone ?? ""],
      visible: () => Boolean(this.shown?.[name]),
      tickVisible: () => false,
    });
    this.views = [view("text", 0), view("left", LABEL_PX)];
    series.attachPrimitive({
      attached: ({ requestUpdate }) => (this.#update = requestUpdate),
      priceAxisViews: () => this.views,
    });
  }

  show(shown) {
    const same = ["price", "text", "left", "tone"].every((name) => shown?.[name] === this.shown?.[name]);
    if (same) return;
    this.shown = shown || null;
    if (!shown) {
      if (this.#line) this.series.removePriceLine(this.#line);
      this.#line = null;
    } else {
      const options = {
        price: shown.price, color: COLORS[shown.tone], lineWidth: 1, lineStyle: LineStyle.Dashed, axisLabelVisible: false,
      };
      if (this.#line) this.#line.applyOptions(options);
      else this.#line = this.series.createPriceLine(options);
    }
    this.#update();
  }

  /** Where a label's middle is, so that both labels are inside of the axis. */
  #coordinate(offset) {
    const height = this.series.getPane().getHeight();
    const y = this.series.priceToCoordinate(this.shown?.price ?? 0) ?? 0;
    return Math.min(Math.max(y, LABEL_PX), height - 2 * LABEL_PX) + offset;
  }
}
