// Draws the figures of the page in the reader's theme. All data is in the page; nothing is fetched.
(() => {
  "use strict";
  const source = document.getElementById("figures");
  if (!source || typeof Plotly === "undefined") return;
  const figures = JSON.parse(source.textContent);

  // A colour in a figure is the name of a CSS variable, such as "--c1".
  const paint = (value, style) => {
    if (typeof value === "string" && value.startsWith("--")) return style.getPropertyValue(value).trim();
    if (value === "inherit") return style.fontFamily;
    if (Array.isArray(value)) return value.map((item) => paint(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
    return value;
  };

  const draw = () => {
    const style = getComputedStyle(document.body);
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = paint(figure, style);
      layout.hoverlabel.bgcolor = style.getPropertyValue("--card").trim();
      Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
    }
  };

  // Paper is light, whatever the screen is.
  const print = (paper) => {
    document.documentElement.classList.toggle("paper", paper);
    draw();
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
})();
