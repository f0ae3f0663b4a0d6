"""The page in a real browser: what a person sees and does."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from harness.processes import wait_for
from shared.snapshot import Snapshot, kline_topic
from tests.viz.conftest import System, save
from tests.viz.played import PlayedEngine, made_up

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
]
EVIL = "<img src=x onerror=alert(1)>"
OLD_KLINES = 700

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]


class Market:
    """A viz with a live engine and a database: 600 symbols, three of them with klines."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.url = system.start_database()
        self.rows: dict[str, list[Snapshot]] = {}
        for symbol, interval, count, decimals in [
            ("BTCUSDT", "1m", OLD_KLINES, 1),
            ("BTCUSDT", "1h", 60, 1),
            ("ETHUSDT", "1m", 60, 2),
            ("PEPEUSDT", "1m", 60, 7),
            (EVIL, "1m", 5, 2),
        ]:
            rows = made_up(symbol, interval, count, decimals=decimals)
            self.rows[kline_topic(symbol, interval)] = rows
            save(self.url, rows[:-1])
        self.figures = {"BTCUSDT": ("101.0", "100.0"), "ETHUSDT": ("9.00", "10.00"), "PEPEUSDT": ("0.0000031", "")}
        self.figures |= {f"COIN{index:03}USDT": (f"{index}.50", "100.00") for index in range(1, 597)}
        self.figures[EVIL] = ("1.00", "1.00")
        self.engine = self.start_engine(1)
        self.viz = system.start_viz()

    def start_engine(self, session: int) -> PlayedEngine:
        engine = self.system.start_engine(session, {topic: rows[-1:] for topic, rows in self.rows.items()})
        engine.figures = self.figures
        return engine

    def move(self, topic: str, close: str) -> Snapshot:
        """Publish the open kline of a topic with another close."""
        row = self.rows[topic][-1]
        moved = msgspec.structs.replace(row, close=close, trade_count=row.trade_count + 1, id_count=row.id_count + 1)
        self.rows[topic][-1] = moved
        self.engine.unsaved[topic] = [moved]
        self.engine.publish(moved)
        return moved


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with ExitStack() as stack:
        yield Market(System(tmp_path_factory.mktemp("page"), stack))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Screen:
    """A page in a profile of its own, and all it complains about."""

    def __init__(self, browser: Browser, market: Market, hash_: str = "", width: int = 1280) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 760})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.loads = 0
        self.page.on("load", lambda _: self._loaded())
        self.page.goto(f"http://{market.system.address}/{hash_}")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _loaded(self) -> None:
        self.loads += 1

    def klines(self) -> int:
        return int(self.page.evaluate("klagg.chart.rows.length"))

    def shows(self, symbol: str, interval: str, klines: int) -> None:
        """Wait until the chart of a symbol and interval has at least so many klines."""
        self.page.wait_for_function(
            "([symbol, interval, klines]) => klagg.state.symbol === symbol && klagg.state.interval === interval"
            " && klagg.chart.rows.length >= klines",
            arg=[symbol, interval, klines],
        )
        expect(self.page.locator("#legend-name")).to_have_text(f"{symbol} · {interval}")


@pytest.fixture
def screen(browser: Browser, market: Market) -> Iterator[Screen]:
    screen = Screen(browser, market)
    yield screen
    screen.context.close()
    assert screen.complaints == []


def test_the_busiest_symbol_is_shown_with_the_list_of_all(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    expect(screen.page.locator("#count")).to_have_text("600 symbols")
    rows = screen.page.get_by_role("option")
    expect(rows.first).to_contain_text("BTCUSDT")
    expect(rows.first).to_contain_text("101.0")
    expect(rows.first).to_contain_text("+1.00%")
    # Of 600 symbols only those in view are in the document.
    assert rows.count() < 40
    expect(screen.page.locator("#c")).to_have_text(grouped(market.rows["kline.BTCUSDT.1m"][-1].close))
    assert screen.page.evaluate("location.hash") == "#BTCUSDT/1m"
    for name in ("page", "exchange", "engine", "database"):
        expect(screen.page.locator(f"#state-{name}")).to_have_attribute("data-state", "good")
    expect(screen.page.locator("#notice")).to_be_hidden()
    expect(screen.page.get_by_role("link", name="TradingView Lightweight Charts")).to_be_visible()


def grouped(text: str) -> str:
    whole, _, fraction = text.partition(".")
    return f"{int(whole):,}.{fraction}"


def test_searching_and_choosing_works_by_keyboard_alone(screen: Screen) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    screen.page.keyboard.press("/")
    expect(screen.page.get_by_role("combobox")).to_be_focused()
    screen.page.keyboard.type("eth")
    expect(screen.page.locator("#count")).to_have_text("1 of 600 symbols")
    screen.page.keyboard.press("Enter")
    screen.shows("ETHUSDT", "1m", 60)
    screen.page.keyboard.press("Escape")
    expect(screen.page.locator("#count")).to_have_text("600 symbols")
    screen.page.keyboard.type("coin")
    expect(screen.page.locator("#count")).to_have_text("596 of 600 symbols")
    screen.page.keyboard.press("ArrowDown")
    screen.page.keyboard.press("ArrowDown")
    screen.page.keyboard.press("ArrowUp")
    screen.page.keyboard.press("Enter")
    expect(screen.page.locator("#symbol")).to_have_text("COIN002USDT")
    expect(screen.page.locator("#notice")).to_contain_text("No klines of COIN002USDT 1m yet")


def test_a_symbol_is_chosen_by_click_and_its_history_drawn_to_the_digit(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    screen.page.get_by_role("option").filter(has_text="PEPEUSDT").click()
    screen.shows("PEPEUSDT", "1m", 60)
    rows = market.rows["kline.PEPEUSDT.1m"]
    assert screen.page.evaluate("klagg.chart.rows.map((row) => row.close)") == [row.close for row in rows]
    assert screen.page.evaluate("klagg.chart.prices.options().priceFormat") == {
        "type": "price",
        "precision": 7,
        "minMove": 1e-7,
    }
    assert screen.page.evaluate("klagg.chart.prices.data().length") == 60
    assert screen.loads <= 1


def test_the_last_kline_moves_with_every_live_row(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    count = screen.klines()
    for close in ("4321.9", "4322.1"):
        moved = market.move("kline.BTCUSDT.1m", close)
        expect(screen.page.locator("#c")).to_have_text(grouped(close))
        expect(screen.page.locator("#last")).to_have_text(grouped(close))
    assert screen.klines() == count
    assert screen.page.evaluate("klagg.chart.prices.data().at(-1).close") == 4322.1
    expect(screen.page.locator("#n")).to_have_text(f"{moved.trade_count:,}")
    expect(screen.page.locator("#mark-state")).to_contain_text("open · closes in")
    expect(screen.page).to_have_title(re.compile(r"^4,322\.1 · BTCUSDT"))


def test_a_kline_closes_and_the_next_one_follows_it(screen: Screen, market: Market) -> None:
    screen.page.evaluate("location.hash = '#ETHUSDT/1m'")
    screen.shows("ETHUSDT", "1m", 60)
    last = market.rows["kline.ETHUSDT.1m"][-1]
    market.engine.publish(msgspec.structs.replace(last, closed=True, revision=2))
    expect(screen.page.locator("#mark-state")).to_have_text("closed · revision 2")
    market.engine.publish(msgspec.structs.replace(last, closed=True, final=True, revision=2))
    expect(screen.page.locator("#mark-state")).to_have_text("final · revision 2")
    following = msgspec.structs.replace(
        last, open_time=last.open_time + 60_000, close_time=last.close_time + 60_000, source="both"
    )
    count = screen.klines()
    market.engine.publish(following)
    screen.shows("ETHUSDT", "1m", count + 1)
    expect(screen.page.locator("#mark-source")).to_have_text("trades + exchange's own")
    # A correction of an older kline changes that one and no other.
    corrected = msgspec.structs.replace(market.rows["kline.ETHUSDT.1m"][10], close="7.77", revision=1)
    market.engine.publish(corrected)
    screen.page.wait_for_function("() => klagg.chart.rows[10].close === '7.77'")
    assert screen.page.evaluate("klagg.chart.prices.data()[10].close") == 7.77
    assert screen.klines() == count + 1


def test_intervals_change_without_a_reload_and_are_in_the_address(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    buttons = screen.page.get_by_role("group", name="Interval").get_by_role("button")
    assert " ".join(buttons.all_text_contents()) == "1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"
    loads = screen.loads
    buttons.get_by_text("1h", exact=True).click()
    screen.shows("BTCUSDT", "1h", 60)
    assert screen.klines() == len(market.rows["kline.BTCUSDT.1h"])
    expect(buttons.get_by_text("1h", exact=True)).to_have_attribute("aria-pressed", "true")
    assert screen.page.evaluate("location.hash") == "#BTCUSDT/1h"
    screen.page.go_back()
    screen.shows("BTCUSDT", "1m", 500)
    assert screen.loads == loads
    wait_for("one topic", lambda: {held for held in market.engine.held if "BTC" in held} == {"kline.BTCUSDT.1m"})


def test_scrolling_back_brings_older_klines(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    assert screen.klines() < OLD_KLINES
    screen.page.evaluate("klagg.chart.chart.timeScale().setVisibleLogicalRange({ from: 5, to: 100 })")
    screen.shows("BTCUSDT", "1m", OLD_KLINES)
    opened = screen.page.evaluate("klagg.chart.rows.map((row) => row.open_time)")
    assert opened == [row.open_time for row in market.rows["kline.BTCUSDT.1m"]]
    screen.page.get_by_role("button", name="Latest").click()
    expect(screen.page.get_by_role("button", name="Latest")).to_be_hidden()


def test_the_legend_follows_the_cursor(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    box = screen.page.locator("#chart").bounding_box()
    assert box
    screen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    screen.page.wait_for_function("() => klagg.chart.hovered() !== null")
    hovered = screen.page.evaluate("klagg.chart.hovered()")
    assert hovered["open_time"] != market.rows["kline.BTCUSDT.1m"][-1].open_time
    expect(screen.page.locator("#o")).to_have_text(grouped(hovered["open"]))
    expect(screen.page.locator("#mark-state")).to_have_text("final")
    expect(screen.page.locator("#mark-proof")).to_have_text("no trade missing")


def test_the_progress_of_the_history_is_shown_while_there_is_any(screen: Screen, market: Market) -> None:
    line = screen.page.locator("#history")
    expect(line).to_be_hidden()
    market.engine.progress = {"announced": 46, "to_announce": 204, "announce_ms": 61_000}
    expect(line).to_have_text("History: 46 of 204 symbols, 2 min left")
    market.engine.progress = {}
    expect(line).to_be_hidden()


def test_the_name_of_a_symbol_is_text_and_nothing_else(screen: Screen) -> None:
    screen.page.get_by_role("combobox").fill("<img")
    screen.page.get_by_role("option").first.click()
    screen.shows(EVIL, "1m", 5)
    expect(screen.page.locator("#symbol")).to_have_text(EVIL)
    assert screen.page.locator("main img, aside img, .ticker img").count() == 0
    screen.page.reload()
    screen.shows(EVIL, "1m", 5)


def test_figures_are_written_without_touching_a_digit(screen: Screen) -> None:
    written = screen.page.evaluate(
        """() => import("/format.js").then((f) => [
            f.grouped("1234567.8900"), f.grouped("0.00000010"), f.grouped("999"), f.decimals("1.50"), f.decimals("7"),
            f.percent(f.change("100", "101.005")), f.percent(f.change("100", "99")), f.percent(f.change("", "1")),
            f.percent(f.change("0", "1")), f.percent(0.001),
            f.countdown(0), f.countdown(59_001), f.countdown(3_600_000), f.countdown(200_000_000),
            f.opened(1790000000000, "1m"), f.opened(1790000000000, "1w"), f.opened(1790000000000, "1M"),
        ])"""
    )
    assert written == [
        *("1,234,567.8900", "0.00000010", "999", 2, 0),
        *("+1.00%", "−1.00%", "—", "—", "0.00%"),
        *("00:00", "01:00", "01:00:00", "2d 07:33:20"),
        *("2026-09-21 14:13", "2026-09-21", "2026-09"),
    ]


def test_an_unknown_symbol_in_the_address_is_said_in_words(browser: Browser, market: Market) -> None:
    screen = Screen(browser, market, "#NOSUCHUSDT/5m")
    expect(screen.page.locator("#notice")).to_contain_text("There is no symbol NOSUCHUSDT here")
    screen.context.close()
    assert screen.complaints == []


def test_a_symbol_that_waits_for_its_history_is_listed_dim_and_wished_for(screen: Screen, market: Market) -> None:
    screen.shows("BTCUSDT", "1m", 500)
    market.engine.progress = {"waiting": ["WAITUSDT"]}
    expect(screen.page.locator("#count")).to_have_text("601 symbols")
    screen.page.get_by_role("combobox").fill("wait")
    option = screen.page.get_by_role("option").first
    expect(option).to_have_attribute("title", "Waits for its history")
    assert float(option.evaluate("(element) => getComputedStyle(element).opacity")) < 0.7
    option.click()
    expect(screen.page.locator("#notice")).to_contain_text("WAITUSDT waits for its history")
    # The subscription is the wish.
    wait_for("the wish", lambda: "kline.WAITUSDT.1m" in market.engine.held)
    market.engine.progress = {}
    expect(screen.page.locator("#notice")).to_contain_text("There is no symbol WAITUSDT here")


def test_klines_that_may_lack_something_are_drawn_differently_and_said_in_words(screen: Screen, market: Market) -> None:
    screen.page.evaluate("location.hash = '#PEPEUSDT/1m'")
    screen.shows("PEPEUSDT", "1m", 60)
    last = market.rows["kline.PEPEUSDT.1m"][-1]
    proof = screen.page.locator("#mark-proof")

    def drawn() -> int:
        return int(screen.page.evaluate("klagg.chart.prices.data().filter((bar) => bar.color).length"))

    assert drawn() == 0
    ids = last.id_count
    for change, words, count in (
        ({"gap": True}, "trades missing", 1),
        ({"unexplained": True, "id_count": ids - 12}, "12 trades unexplained: not final", 1),
        ({"saturated": True}, "volumes are too large: not final", 0),
        ({"audited": True, "closed": True, "final": True}, "proven by the exchange's own kline", 0),
        ({}, "no trade missing", 0),
    ):
        market.engine.publish(msgspec.structs.replace(last, **change))
        expect(proof).to_have_text(words)
        assert drawn() == count


def test_a_flat_kline_of_a_silent_time_is_doubtful_until_it_has_ids_or_is_final(screen: Screen) -> None:
    shown = screen.page.evaluate(
        """() => import("/live.js").then(({ isUnsure }) => {
            const flat = { open_time: 60, close_time: 119, gap: false, unexplained: false, final: false, id_count: 0 };
            return [
                isUnsure(flat, null, []), isUnsure(flat, null, [[100, 200]]), isUnsure(flat, null, [[120, 200]]),
                isUnsure(flat, null, [[10, 60]]), isUnsure({ ...flat, id_count: 1 }, null, [[100, 200]]),
                isUnsure({ ...flat, final: true }, null, [[100, 200]]), isUnsure({ ...flat, final: true }, 100, []),
                isUnsure({ ...flat, id_count: 1 }, 100, []), isUnsure({ ...flat, id_count: 1 }, 120, []),
                isUnsure({ ...flat, gap: true }, null, []), isUnsure({ ...flat, gap: true, final: true }, null, []),
            ];
        })"""
    )
    assert shown == [False, True, False, False, False, False, False, True, False, True, False]


def test_on_a_phone_the_list_is_behind_a_button(browser: Browser, market: Market) -> None:
    screen = Screen(browser, market, "#ETHUSDT/1m", width=390)
    screen.shows("ETHUSDT", "1m", 60)
    expect(screen.page.locator("#side")).not_to_be_visible()
    screen.page.get_by_role("button", name="Symbols").click()
    screen.page.get_by_role("option").filter(has_text="PEPEUSDT").click()
    screen.shows("PEPEUSDT", "1m", 60)
    expect(screen.page.locator("#side")).not_to_be_visible()
    assert screen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screen.context.close()
    assert screen.complaints == []


def test_it_comes_back_by_itself_after_the_server_and_the_engine_were_away(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as stack:
        market = Market(System(tmp_path, stack))
        screen = Screen(browser, market, "#BTCUSDT/1m")
        screen.shows("BTCUSDT", "1m", 500)

        market.engine.stop()
        expect(screen.page.locator("#notice")).to_contain_text("The engine has fallen silent", timeout=60_000)
        market.engine = market.start_engine(2)
        expect(screen.page.locator("#notice")).to_be_hidden(timeout=60_000)

        market.viz.stop()
        expect(screen.page.locator("#notice")).to_contain_text("Connection lost")
        expect(screen.page.locator("#state-page")).to_have_attribute("data-state", "bad")
        market.viz = market.system.start_viz()
        expect(screen.page.locator("#notice")).to_be_hidden(timeout=60_000)
        wait_for("the subscription", lambda: "kline.BTCUSDT.1m" in market.engine.held)
        market.move("kline.BTCUSDT.1m", "1234.5")
        expect(screen.page.locator("#c")).to_have_text("1,234.5")
        assert screen.loads <= 1
        screen.context.close()
        # The browser itself reports each failed attempt to connect.
        assert [text for text in screen.complaints if "WebSocket connection" not in text] == []


def test_it_says_what_is_missing_and_heals(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as stack:
        system = System(tmp_path, stack)
        system.start_viz()
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://{system.address}/")
        expect(page.locator("#notice")).to_contain_text("Waiting for the engine")
        expect(page.locator("#notice")).to_contain_text("no history either")
        expect(page.locator("#state-database")).to_have_attribute("data-state", "bad")
        engine = system.start_engine(unsaved={"kline.BTCUSDT.1m": made_up("BTCUSDT", "1m", 2)})
        engine.figures = {"BTCUSDT": ("100.0", "90.0")}
        page.wait_for_function("() => klagg.chart.rows.length === 2", timeout=60_000)
        expect(page.locator("#notice")).to_contain_text("Live only: no history")
        engine.progress = {"missing_ids": 0, "audit": {"matched": 1_200, "burnt": 30, "straddled": 4}}
        expect(page.locator("#state-proof")).to_have_attribute("data-state", "good")
        expect(page.locator("#state-proof")).to_have_attribute(
            "title", re.compile("1,234 minutes compared.* 1,200 equal")
        )
        engine.progress = {"missing_ids": 0, "audit": {"mismatched": 1}}
        expect(page.locator("#state-proof")).to_have_attribute("data-state", "bad")
        engine.progress = {"lag_ms": 4_100}
        expect(page.locator("#state-engine")).to_have_attribute(
            "title", re.compile("^The engine is 4 s behind the exchange")
        )
        expect(page.locator("#state-engine")).to_have_attribute("data-state", "wait")
        context.close()
