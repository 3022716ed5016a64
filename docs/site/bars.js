// The page of plots: bars of one record of bench/results, chosen by benchmark, case, size and contenders.
(async () => {
  const root = document.getElementById("bars");
  if (!root) return;
  const NAMES = ["scans", "sum_tree", "replay", "gather_rows", "n_step_gather", "heads", "tanh_normal", "conjugate_gradient", "adam", "loader"];
  const make = (tag, parent, text) => {
    const element = parent.appendChild(document.createElement(tag));
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const choice = (title) => {
    const select = make("select", root);
    select.setAttribute("aria-label", title);
    return select;
  };
  const fill = (select, values) => {
    select.replaceChildren();
    for (const value of values) make("option", select, value).value = value;
  };
  const benchmark = choice("benchmark"), kind = choice("case"), size = choice("size");
  const about = make("p", root), peers = make("div", root), plot = make("div", root);
  const three = (x) => x.toLocaleString("en", { maximumSignificantDigits: 3 });
  const hidden = new Set();
  let data;

  const sizeName = (record) => Object.entries(record.size).map(([key, value]) => `${key}=${value}`).join(" ");
  const record = () => data.records.find((x) => x.case === kind.value && sizeName(x) === size.value);

  function draw() {
    const shown = Object.entries(record().results).filter(([name]) => !hidden.has(name));
    const longest = Math.max(...shown.map(([, result]) => result.us));
    plot.replaceChildren();
    for (const [name, result] of shown) {
      const row = make("div", plot);
      row.className = name.startsWith("fastrl") ? "row ours" : "row";
      make("div", row, `${name}: ${three(result.us)} us, ${three(result.ratio)} times fastrl's`);
      const bar = make("div", row);
      bar.className = "bar";
      bar.style.width = `${(100 * result.us) / longest}%`;
    }
  }

  function choosePeers() {
    peers.replaceChildren();
    for (const name of Object.keys(record().results)) {
      const label = make("label", peers);
      const box = make("input", label);
      box.type = "checkbox";
      box.checked = !hidden.has(name);
      box.onchange = () => {
        hidden[box.checked ? "delete" : "add"](name);
        draw();
      };
      label.append(` ${name}`);
    }
    draw();
  }

  function chooseCase() {
    fill(size, data.records.filter((x) => x.case === kind.value).map(sizeName));
    choosePeers();
  }

  async function chooseBenchmark() {
    data = await (await fetch(`${root.dataset.folder}${benchmark.value}.json`)).json();
    const versions = Object.entries(data.machine.versions).map(([name, version]) => `${name} ${version}`).join(", ");
    about.textContent = `${data.machine.cpu}, ${data.machine.threads} thread(s); ${versions}. ${data.note || ""}`;
    fill(kind, new Set(data.records.map((x) => x.case)));
    hidden.clear();
    for (const x of data.records)
      for (const name of Object.keys(x.results)) if (/reference/.test(name)) hidden.add(name); // thousands of times slower
    chooseCase();
  }

  benchmark.onchange = chooseBenchmark;
  kind.onchange = chooseCase;
  size.onchange = choosePeers;
  fill(benchmark, NAMES);
  await chooseBenchmark();
})();
