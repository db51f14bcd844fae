#include "topologies/diagram.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "core/counted.hpp"

namespace coterie {
namespace {

constexpr double kWidth = 1280.0;
constexpr double kMargin = 30.0;
constexpr double kLabelWidth = 200.0;  // the column of row labels on the left
constexpr double kLeft = kMargin + kLabelWidth;
constexpr double kSpan = kWidth - kMargin - kLeft;
constexpr double kSwitchHeight = 30.0;
constexpr double kRowGap = 110.0;
constexpr std::size_t kMaxDrawnNodes = 8;  // drawn in full up to this many
constexpr std::size_t kMaxSwitches = 16;   // of a row
constexpr std::size_t kMaxDrawnGpus = 8;   // of a node
// One colour per rail (Okabe and Ito's palette without yellow, dark enough for thin lines).
constexpr std::array kRailColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                  "#56b4e9", "#e69f00", "#5f5f5f", "#8a4fbf"};

struct Point {
  double x = 0.0, y = 0.0;
};

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += c;
    }
  }
  return out;
}

std::string plural(const std::string& kind) {
  if (kind == "leaf") return "leaves";
  if (kind == "switch") return "switches";
  return kind == "edge" || kind == "aggregation" ? kind + " switches" : kind + "s";
}

// Lines lie under boxes, boxes under text.
class Canvas {
 public:
  void line(Point a, Point b, std::string_view colour, double width, double opacity = 1.0) {
    lines_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-width=\"{:.1f}\" stroke-opacity=\"{:.2f}\"/>\n",
        a.x, a.y, b.x, b.y, colour, width, opacity);
  }
  // A curve from a to b that rises `height` above them.
  void arc(Point a, Point b, double height, std::string_view colour, double width) {
    lines_ += fmt::format(
        "<path d=\"M {:.1f} {:.1f} Q {:.1f} {:.1f} {:.1f} {:.1f}\" fill=\"none\" stroke=\"{}\" "
        "stroke-width=\"{:.1f}\"/>\n",
        a.x, a.y, (a.x + b.x) / 2, std::min(a.y, b.y) - 2 * height, b.x, b.y, colour, width);
  }
  void box(Point corner, double width, double height, std::string_view fill,
           std::string_view stroke, double radius = 4.0) {
    boxes_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{:.1f}\" "
        "fill=\"{}\" stroke=\"{}\"/>\n",
        corner.x, corner.y, width, height, radius, fill, stroke);
  }
  void dot(Point centre, double radius, std::string_view fill) {
    boxes_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\"/>\n",
                          centre.x, centre.y, radius, fill);
  }
  void text(Point at, std::string_view content, double size = 12.0,
            std::string_view anchor = "middle", std::string_view extra = "") {
    texts_ += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{:.0f}\" text-anchor=\"{}\" {}>{}</text>\n",
        at.x, at.y, size, anchor, extra, escaped(content));
  }
  [[nodiscard]] std::string finish(double height) const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"Helvetica, Arial, sans-serif\" "
        "fill=\"#222222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}{3}{4}"
        "</svg>\n",
        kWidth, height, lines_, boxes_, texts_);
  }

 private:
  std::string lines_, boxes_, texts_;
};

// Items of a row: those drawn, with gaps where some are left out.
struct Slot {
  std::uint32_t item = 0;
  std::uint32_t left_out = 0;  // > 0: a gap
};

// The drawn items (ascending) of `total`, at most `most` of them: the first and the last ones.
std::vector<Slot> with_gaps(std::vector<std::uint32_t> drawn, std::uint32_t first,
                            std::uint32_t total, std::size_t most) {
  if (drawn.size() > most) {
    const auto keep_last = static_cast<std::ptrdiff_t>(most / 2);
    const auto keep_first = static_cast<std::ptrdiff_t>(most) - keep_last;
    drawn.erase(drawn.begin() + keep_first, drawn.end() - keep_last);
  }
  std::vector<Slot> slots;
  std::uint32_t next = first;
  for (const std::uint32_t item : drawn) {
    if (item > next) slots.push_back({0, item - next});
    slots.push_back({item, 0});
    next = item + 1;
  }
  if (next < first + total) slots.push_back({0, first + total - next});
  return slots;
}

Point slot_centre(std::size_t slot, std::size_t count, double y) {
  return {kLeft + (static_cast<double>(slot) + 0.5) * kSpan / static_cast<double>(count), y};
}

class Diagram {
 public:
  Diagram(const Cluster& cluster, const FabricModel& model, const FabricSummary& summary)
      : cluster_(cluster), model_(model), summary_(summary) {}

  std::string draw() {
    choose_nodes();
    draw_title();
    if (cluster_.fabric) {
      if (const auto* torus = std::get_if<TorusFabric>(&cluster_.fabric->kind)) {
        draw_torus(*torus);
      } else if (const auto* dragonfly = std::get_if<DragonflyFabric>(&cluster_.fabric->kind)) {
        draw_dragonfly(*dragonfly);
      } else {
        draw_layers();
      }
    }
    draw_nodes();
    return canvas_.finish(y_ + kMargin);
  }

 private:
  void choose_nodes();
  void draw_title();
  void draw_layers();
  void draw_torus(const TorusFabric& torus);
  void draw_dragonfly(const DragonflyFabric& dragonfly);
  void draw_nodes();
  void draw_node(std::uint32_t node, Point corner, double width);
  void draw_bridges(double left, double width, double y);
  void draw_domains(const std::vector<Slot>& slots, double y, double node_width);
  void label_row(double y, const std::string& title, const std::string& detail);
  void draw_switch_row(const std::vector<Slot>& slots, double y);
  [[nodiscard]] std::string cables_text(std::string_view from, std::string_view to) const;
  [[nodiscard]] std::vector<std::uint32_t> neighbours(const std::set<std::uint32_t>& of) const;
  [[nodiscard]] std::uint32_t drawn_gpus() const {
    return cluster_.gpus_per_node <= kMaxDrawnGpus ? cluster_.gpus_per_node
                                                   : static_cast<std::uint32_t>(kMaxDrawnGpus) - 2;
  }

  const Cluster& cluster_;
  const FabricModel& model_;
  const FabricSummary& summary_;
  Canvas canvas_;
  double y_ = 0.0;
  std::vector<std::uint32_t> nodes_;          // drawn
  std::map<std::uint32_t, Point> switch_at_;  // bottom centre of the drawn switches
};

void Diagram::choose_nodes() {
  if (cluster_.num_nodes <= kMaxDrawnNodes) {
    for (std::uint32_t node = 0; node < cluster_.num_nodes; ++node) nodes_.push_back(node);
  } else {
    nodes_ = {0, 1, 2, 3, cluster_.num_nodes - 1};
  }
}

void Diagram::draw_title() {
  canvas_.text({kMargin, 40}, cluster_.name, 22, "start", "font-weight=\"bold\"");
  canvas_.text({kMargin, 62}, cluster_.description, 14, "start");
  std::string facts =
      fmt::format("{} ({}) = {} node{} x {}", counted(summary_.num_gpus, "GPU"), cluster_.gpu.name,
                  summary_.num_nodes, summary_.num_nodes > 1 ? "s" : "", cluster_.gpus_per_node);
  if (summary_.scale_up_bisection) {
    facts +=
        fmt::format("   |   scale-up bisection {}", format_bandwidth(*summary_.scale_up_bisection));
  }
  if (summary_.network_bisection) {
    facts += fmt::format("   |   network bisection {}, diameter {}",
                         format_bandwidth(*summary_.network_bisection),
                         counted(summary_.diameter, "link"));
    if (summary_.oversubscription) {
      facts += fmt::format(", oversubscription {:.3g} : 1", *summary_.oversubscription);
    }
  }
  canvas_.text({kMargin, 84}, facts, 13, "start", "fill=\"#555555\"");
  y_ = 115;
}

void Diagram::label_row(double y, const std::string& title, const std::string& detail) {
  canvas_.text({kMargin, y}, title, 13, "start", "font-weight=\"bold\"");
  if (!detail.empty()) canvas_.text({kMargin, y + 16}, detail, 11, "start", "fill=\"#555555\"");
}

std::string Diagram::cables_text(std::string_view from, std::string_view to) const {
  std::string text;
  for (const CableGroup& group : summary_.cables) {
    if (group.name != fmt::format("{} - {}", from, to)) continue;
    if (!text.empty()) text += " + ";
    text += fmt::format("{} x {}", group.num_cables, format_bandwidth(group.bandwidth));
  }
  return text;
}

void Diagram::draw_switch_row(const std::vector<Slot>& slots, double y) {
  const double width = std::min(96.0, kSpan / static_cast<double>(slots.size()) - 6);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Point at = slot_centre(i, slots.size(), y);
    if (slots[i].left_out > 0) {
      canvas_.text({at.x, at.y + 13}, "...", 16);
      canvas_.text({at.x, at.y + 28}, fmt::format("{} more", slots[i].left_out), 11);
      continue;
    }
    const Switch& item = model_.switches.switches[slots[i].item];
    canvas_.box({at.x - width / 2, y}, width, kSwitchHeight, "#e8eef5", "#5b7a99");
    const bool narrow = width < 62;
    canvas_.text({at.x, y + 20}, narrow ? std::to_string(item.idx) : switch_name(item), 12);
    switch_at_[slots[i].item] = {at.x, y + kSwitchHeight};
  }
}

// Switches that share a cable with one of `of`, ascending.
std::vector<std::uint32_t> Diagram::neighbours(const std::set<std::uint32_t>& of) const {
  std::set<std::uint32_t> found;
  for (const SwitchCable& cable : model_.switches.cables) {
    if (of.contains(cable.a)) found.insert(cable.b);
    if (of.contains(cable.b)) found.insert(cable.a);
  }
  return {found.begin(), found.end()};
}

// Switches in rows: those that NICs end at below, then row by row what they are cabled to.
void Diagram::draw_layers() {
  const SwitchGraph& graph = model_.switches;
  std::vector<std::uint32_t> row_of(graph.switches.size(), 0);
  std::set<std::uint32_t> attached(graph.attach.begin(), graph.attach.end());
  const auto row_by_kind = [](SwitchKind kind) {
    if (kind == SwitchKind::kCore) return 2U;
    return kind == SwitchKind::kSpine || kind == SwitchKind::kAggregation ? 1U : 0U;
  };
  std::uint32_t num_rows = 1;
  for (std::uint32_t i = 0; i < graph.switches.size(); ++i) {
    row_of[i] = row_by_kind(graph.switches[i].kind);
    num_rows = std::max(num_rows, row_of[i] + 1);
  }
  // The first and the number of switches of every row (they are numbered row by row).
  std::vector<std::uint32_t> first(num_rows, 0), count(num_rows, 0);
  for (std::uint32_t i = 0; i < graph.switches.size(); ++i) {
    if (count[row_of[i]]++ == 0) first[row_of[i]] = i;
  }
  std::set<std::uint32_t> drawn_below;
  for (const std::uint32_t node : nodes_) {
    for (std::uint32_t local = 0; local < drawn_gpus(); ++local) {
      drawn_below.insert(graph.attach[node * cluster_.gpus_per_node + local]);
    }
  }
  if (count[0] <= kMaxSwitches) {
    for (std::uint32_t i = 0; i < count[0]; ++i) drawn_below.insert(first[0] + i);
  }
  std::vector<std::uint32_t> candidates(drawn_below.begin(), drawn_below.end());
  const double top = y_;
  for (std::uint32_t row = 0; row < num_rows; ++row) {
    const double y = top + kRowGap * (num_rows - 1 - row);
    const std::vector<Slot> slots = with_gaps(candidates, first[row], count[row], kMaxSwitches);
    draw_switch_row(slots, y);
    const std::string kind = to_string(graph.switches[first[row]].kind);
    const std::string below = row == 0 ? "" : to_string(graph.switches[first[row - 1]].kind);
    label_row(y + 14, fmt::format("{} {}", count[row], count[row] > 1 ? plural(kind) : kind),
              row == 0 ? cables_text("GPU", kind) : cables_text(below, kind));
    std::set<std::uint32_t> drawn;
    for (const Slot& slot : slots) {
      if (slot.left_out == 0) drawn.insert(slot.item);
    }
    candidates.clear();
    for (const std::uint32_t item : neighbours(drawn)) {
      if (row_of[item] == row + 1) candidates.push_back(item);
    }
  }
  for (const SwitchCable& cable : graph.cables) {
    const auto a = switch_at_.find(cable.a);
    const auto b = switch_at_.find(cable.b);
    if (a == switch_at_.end() || b == switch_at_.end()) continue;
    if (row_of[cable.a] == row_of[cable.b]) {
      const double reach = std::abs(a->second.x - b->second.x);
      canvas_.arc({a->second.x, a->second.y - kSwitchHeight},
                  {b->second.x, b->second.y - kSwitchHeight}, 12 + reach / 16, "#9fb3c8", 1.2);
    } else {
      const Point lower = a->second.y > b->second.y ? a->second : b->second;
      const Point upper = a->second.y > b->second.y ? b->second : a->second;
      canvas_.line(upper, {lower.x, lower.y - kSwitchHeight}, "#9fb3c8", 1.0);
    }
  }
  y_ = top + kRowGap * num_rows;
}

// The plane of the last two dimensions in which node 0 lies.
void Diagram::draw_torus(const TorusFabric& torus) {
  const std::size_t dims = torus.dimensions.size();
  const std::uint32_t columns = torus.dimensions[dims - 1];
  const std::uint32_t rows = dims > 1 ? torus.dimensions[dims - 2] : 1;
  const std::uint32_t planes = cluster_.num_nodes / (columns * rows);
  const std::uint32_t drawn_columns = std::min(columns, 8U);
  const std::uint32_t drawn_rows = std::min(rows, 5U);
  const double dx = 120.0;
  const double dy = 64.0;
  const double top = y_ + 20;
  label_row(top + 14, fmt::format("{} torus", fmt::join(torus.dimensions, " x ")),
            cables_text("router", "router"));
  if (planes > 1) {
    label_row(top + 54, fmt::format("plane 1 of {}", planes), "each router also joined to the");
    canvas_.text({kMargin, top + 86}, "same place of the next planes", 11, "start",
                 "fill=\"#555555\"");
  }
  const auto place = [&](std::uint32_t row, std::uint32_t column) {
    return Point{kLeft + 60 + column * dx, top + 14 + row * dy};
  };
  for (std::uint32_t r = 0; r < drawn_rows; ++r) {
    for (std::uint32_t c = 0; c < drawn_columns; ++c) {
      const Point at = place(r, c);
      canvas_.box({at.x - 32, at.y - 14}, 64, 28, "#e8eef5", "#5b7a99");
      canvas_.text({at.x, at.y + 4}, fmt::format("router {}", r * columns + c), 11);
      // Stubs at the rim: the wrap-around, or the routers left out.
      canvas_.line(at, {at.x + (c + 1 < drawn_columns ? dx : 52.0), at.y}, "#5b7a99", 1.4);
      if (c == 0 && columns > 2) canvas_.line(at, {at.x - 52, at.y}, "#5b7a99", 1.4);
      if (rows > 1) {
        canvas_.line(at, {at.x, at.y + (r + 1 < drawn_rows ? dy : 30.0)}, "#5b7a99", 1.4);
        if (r == 0 && rows > 2) canvas_.line(at, {at.x, at.y - 30}, "#5b7a99", 1.4);
      }
    }
  }
  if (drawn_columns < columns) {
    const Point at = place(0, drawn_columns);
    canvas_.text({at.x - 40, at.y + 4}, fmt::format("{} more columns", columns - drawn_columns), 11,
                 "start");
  }
  y_ = top + drawn_rows * dy + 10;
  canvas_.text({kLeft + 28, y_},
               drawn_rows < rows
                   ? fmt::format("{} more rows; the rims are joined", rows - drawn_rows)
                   : "the rims are joined (wrap-around)",
               11, "start", "fill=\"#555555\"");
  y_ += 50;
}

// Groups as rings of routers with all their local cables, global cables as one arc per pair.
void Diagram::draw_dragonfly(const DragonflyFabric& dragonfly) {
  const std::uint32_t groups = dragonfly.num_groups;
  std::vector<std::uint32_t> drawn;
  for (std::uint32_t i = 0; i < groups; ++i) {
    if (groups <= 6 || i < 4 || i + 1 == groups) drawn.push_back(i);
  }
  const std::vector<Slot> slots = with_gaps(drawn, 0, groups, 6);
  const double radius = 58.0;
  const double centre_y = y_ + 190;
  label_row(y_ + 94, counted(groups, "group"),
            fmt::format("of {}", counted(dragonfly.routers_per_group, "router")));
  label_row(centre_y, "local cables", format_bandwidth(dragonfly.local_bandwidth) + " each");
  const std::uint32_t h = dragonfly.global_links_per_router;
  const std::uint32_t copies = groups > 1 ? dragonfly.routers_per_group * h / (groups - 1) : 0;
  if (groups > 1) {
    label_row(y_ + 40, "global cables",
              fmt::format("{} x {} per pair of groups", copies,
                          format_bandwidth(dragonfly.global_bandwidth)));
  }
  std::vector<Point> tops;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Point centre = slot_centre(i, slots.size(), centre_y);
    if (slots[i].left_out > 0) {
      canvas_.text(centre, "...", 18);
      canvas_.text({centre.x, centre.y + 18}, fmt::format("{} more groups", slots[i].left_out), 12);
      continue;
    }
    const std::uint32_t routers = dragonfly.routers_per_group;
    const std::uint32_t ring = std::min(routers, 16U);
    const auto place = [&](std::uint32_t k) {
      const double angle = 2.0 * std::numbers::pi * k / ring - std::numbers::pi / 2;
      return Point{centre.x + radius * std::cos(angle), centre.y + radius * std::sin(angle)};
    };
    for (std::uint32_t a = 0; a < ring; ++a) {
      for (std::uint32_t b = a + 1; b < ring; ++b) {
        canvas_.line(place(a), place(b), "#9fb3c8", 0.6);
      }
      canvas_.dot(place(a), 5, "#5b7a99");
    }
    canvas_.text({centre.x, centre.y + radius + 24}, fmt::format("group {}", slots[i].item), 12);
    if (ring < routers) {
      canvas_.text({centre.x, centre.y + radius + 40},
                   fmt::format("{} more routers", routers - ring), 11);
    }
    tops.push_back({centre.x, centre.y - radius - 8});
  }
  for (std::size_t a = 0; a < tops.size(); ++a) {
    for (std::size_t b = a + 1; b < tops.size(); ++b) {
      canvas_.arc(tops[a], tops[b], 16 + (tops[b].x - tops[a].x) / 14, "#d55e00", 1.6);
    }
  }
  y_ = centre_y + radius + 80;
}

void Diagram::draw_node(std::uint32_t node, Point corner, double width) {
  const std::uint32_t drawn = drawn_gpus();
  const std::uint32_t columns = std::min(drawn, width > 260 ? 8U : 4U);
  const double cell = std::min(44.0, (width - 12) / columns);
  const std::uint32_t rows = (drawn + columns - 1) / columns;
  const double left = corner.x + (width - cell * columns) / 2;
  for (std::uint32_t i = 0; i < drawn; ++i) {
    const std::uint32_t gpu = node * cluster_.gpus_per_node + i;
    const Point at{left + cell * (i % columns), corner.y + 26 + cell * (i / columns)};
    const std::string_view colour = kRailColours[i % kRailColours.size()];
    canvas_.box({at.x + 2, at.y + 2}, cell - 4, cell - 4, cluster_.nic ? colour : "#5b7a99", "none",
                3);
    canvas_.text({at.x + cell / 2, at.y + cell / 2 + 4}, std::to_string(i), 11, "middle",
                 "style=\"fill:#ffffff\"");
    if (!cluster_.nic) continue;
    const auto goal = switch_at_.find(model_.switches.attach[gpu]);
    if (goal == switch_at_.end()) continue;
    // NICs side by side on the upper edge, so that their cables cross no box.
    const Point nic{corner.x + width * (i + 0.5) / drawn, corner.y};
    canvas_.line(nic, goal->second, colour, 1.2, 0.75);
    canvas_.dot(nic, 3.5, colour);
  }
  canvas_.text({corner.x + width / 2, corner.y + 18},
               cluster_.num_nodes == 1 ? "node" : fmt::format("node {}", node), 12);
  if (drawn < cluster_.gpus_per_node) {
    canvas_.text({corner.x + width / 2, corner.y + 26 + cell * rows + 14},
                 fmt::format("{} more GPUs", cluster_.gpus_per_node - drawn), 11);
  }
}

// A bar below the nodes of each domain.
void Diagram::draw_domains(const std::vector<Slot>& slots, double y, double node_width) {
  const ScaleUp& scale_up = *cluster_.scale_up;
  std::map<std::uint32_t, std::pair<double, double>> bars;  // domain: left and right end
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].left_out > 0) continue;
    const double x = slot_centre(i, slots.size(), y).x;
    const std::uint32_t domain = slots[i].item / scale_up.nodes_per_domain;
    const auto [bar, fresh] = bars.try_emplace(domain, x - node_width / 2, x + node_width / 2);
    if (!fresh) bar->second.second = x + node_width / 2;
  }
  const char* kind = scale_up.kind == ScaleUpKind::kNvlink ? "NVLink"
                     : scale_up.kind == ScaleUpKind::kPcie ? "PCIe"
                                                           : "sockets";
  for (const auto& [domain, ends] : bars) {
    const double width = ends.second - ends.first;
    canvas_.box({ends.first, y}, width, 22, "#f3e9d2", "#b08d3c");
    canvas_.text({(ends.first + ends.second) / 2, y + 15},
                 width > 300 ? fmt::format("{} domain {}", kind, domain) : kind, 11);
    if (scale_up.shared_bandwidth) draw_bridges(ends.first, width, y + 26);
  }
  const std::uint32_t domain_gpus = scale_up.nodes_per_domain * cluster_.gpus_per_node;
  label_row(y + 8,
            fmt::format("{} x {} of {}", model_.num_domains, kind, counted(domain_gpus, "GPU")),
            fmt::format("{} per GPU", format_bandwidth(scale_up.bandwidth)));
  if (!scale_up.shared_bandwidth) return;
  const auto note = [&](double at, const std::string& text) {
    canvas_.text({kMargin, at}, text, 11, "start", "fill=\"#555555\"");
  };
  note(y + 40, fmt::format("{} {}", format_bandwidth(*scale_up.shared_bandwidth),
                           scale_up.num_sockets > 1 ? "shared per socket" : "shared by all"));
  if (scale_up.shared_group > 1) {
    note(y + 54, fmt::format("not inside groups of {}", counted(scale_up.shared_group, "GPU")));
  }
  if (scale_up.socket_bandwidth) {
    note(y + 68, fmt::format("{} between sockets", format_bandwidth(*scale_up.socket_bandwidth)));
  }
}

// What the GPUs of a domain share: one box per socket, joined, each over the groups of GPUs whose
// traffic among themselves stays off it.
void Diagram::draw_bridges(double left, double width, double y) {
  const ScaleUp& scale_up = *cluster_.scale_up;
  const std::uint32_t domain_gpus = scale_up.nodes_per_domain * cluster_.gpus_per_node;
  const std::uint32_t sockets = scale_up.num_sockets;
  const double step = width / sockets;
  for (std::uint32_t socket = 0; socket < sockets; ++socket) {
    const double x = left + step * socket + (sockets > 1 ? 4 : 0);
    const double box = step - (sockets > 1 ? 8 : 0);
    if (socket > 0) canvas_.line({x - 8, y + 26}, {x, y + 26}, "#7a5c99", 4.0);
    canvas_.box({x, y + 16}, box, 20, "#e9e2f3", "#7a5c99");
    canvas_.text({x + box / 2, y + 30},
                 sockets > 1   ? fmt::format("socket {}", socket)
                 : box > 150.0 ? "shared link"
                               : "shared",
                 11);
    // One mark per group, as far as they can be told apart.
    const std::uint32_t groups =
        std::max(domain_gpus / sockets / std::max(scale_up.shared_group, 1U), 1U);
    if (groups > 16 || scale_up.shared_group < 2) continue;
    for (std::uint32_t group = 0; group < groups; ++group) {
      const double part = box / groups;
      canvas_.box({x + part * group + 3, y + 3}, part - 6, 7, "#b08d3c", "none", 2);
      canvas_.line({x + part * (group + 0.5), y + 10}, {x + part * (group + 0.5), y + 16},
                   "#7a5c99", 1.4);
    }
  }
}

void Diagram::draw_nodes() {
  const std::vector<Slot> slots = with_gaps(nodes_, 0, cluster_.num_nodes, kMaxDrawnNodes);
  const double width = std::min(400.0, kSpan / static_cast<double>(slots.size()) - 10);
  const std::uint32_t drawn = drawn_gpus();
  const std::uint32_t columns = std::min(drawn, width > 260 ? 8U : 4U);
  const double cell = std::min(44.0, (width - 12) / columns);
  const double height =
      26 + cell * ((drawn + columns - 1) / columns) + (drawn < cluster_.gpus_per_node ? 22 : 8);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Point at = slot_centre(i, slots.size(), y_);
    if (slots[i].left_out > 0) {
      canvas_.text({at.x, y_ + height / 2}, "...", 18);
      canvas_.text({at.x, y_ + height / 2 + 18}, fmt::format("{} more nodes", slots[i].left_out),
                   12);
      continue;
    }
    canvas_.box({at.x - width / 2, y_}, width, height, "#fafafa", "#999999");
    draw_node(slots[i].item, {at.x - width / 2, y_}, width);
    if (cluster_.nic && switch_at_.empty()) {
      canvas_.line({at.x, y_}, {at.x, y_ - 18}, "#5b7a99", 1.4);
      const std::uint32_t gpu = slots[i].item * cluster_.gpus_per_node;
      canvas_.text({at.x, y_ - 22},
                   switch_name(model_.switches.switches[model_.switches.attach[gpu]]), 11);
    }
  }
  label_row(y_ + 18,
            fmt::format("{} node{}", cluster_.num_nodes, cluster_.num_nodes > 1 ? "s" : ""),
            fmt::format("of {} x {}", cluster_.gpus_per_node, cluster_.gpu.name));
  if (cluster_.nic) {
    canvas_.text({kMargin, y_ + 50},
                 fmt::format("NIC {} x {} per GPU", cluster_.nic->per_gpu,
                             format_bandwidth(cluster_.nic->bandwidth)),
                 11, "start", "fill=\"#555555\"");
  }
  y_ += height + 12;
  if (cluster_.scale_up) {
    draw_domains(slots, y_, width);
    y_ += cluster_.scale_up->shared_bandwidth ? 74 : 44;
  }
}

}  // namespace

std::string draw_svg(const Cluster& cluster, const FabricModel& model,
                     const FabricSummary& summary) {
  return Diagram(cluster, model, summary).draw();
}

}  // namespace coterie
