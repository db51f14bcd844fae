// What a sweep's rows say, in words.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/statistics.hpp"
#include "sim/report/pages.hpp"

namespace coterie {
namespace {

constexpr double kEqual = 0.02;  // ratios this close to 1 count as equal

std::string bold(const std::string& text) {
  return fmt::format("<b>{}</b>", escape_html(text));
}

std::string share_text(std::size_t part, std::size_t whole) {
  return fmt::format("{:.0f} percent", 100.0 * static_cast<double>(part) /
                                           static_cast<double>(std::max<std::size_t>(whole, 1)));
}

class SweepSummary {
 public:
  SweepSummary(const CsvTable& table, const nlohmann::json& facts) : table_(table), facts_(facts) {
    for (std::size_t row = 0; row < table.rows.size(); ++row) {
      points_.insert(table.text(row, "point"));
      if (table.text(row, "status") != "ok") {
        ++num_failed_;
        continue;
      }
      const std::string run = table.text(row, "run");
      if (rows_of_.find(run) == rows_of_.end()) runs_.push_back(run);
      rows_of_[run].push_back(row);
    }
  }

  std::vector<std::string> write() {
    add_size();
    if (runs_.empty()) return std::move(paragraphs_);
    add_gains();
    add_best_point();
    add_binding_tier();
    add_baseline();
    return std::move(paragraphs_);
  }

 private:
  // The ratio that the summary speaks about: the sweep's own baseline where it has one.
  [[nodiscard]] std::string ratio_column() const {
    for (const char* column :
         {"speedup_over_dedup_contiguous", "speedup_over_baseline", "speedup_over_standard"}) {
      if (table_.find(column) && has_numbers(column)) return column;
    }
    return "";
  }
  [[nodiscard]] bool has_numbers(const char* column) const {
    for (std::size_t row = 0; row < table_.rows.size(); ++row) {
      if (table_.number(row, column)) return true;
    }
    return false;
  }
  [[nodiscard]] std::string ratio_name() const {
    const std::string column = ratio_column();
    if (column == "speedup_over_dedup_contiguous") return "dedup + contiguous";
    return column == "speedup_over_standard" ? "standard + contiguous" : "the sweep's baseline";
  }
  [[nodiscard]] bool exact(const std::string& run) const {
    return table_.text(rows_of_.at(run).front(), "exact") == "true";
  }

  void add_size() {
    double fewest = 0.0;
    double most = 0.0;
    std::set<std::string> topologies;
    for (const auto& [run, rows] : rows_of_) {
      for (const std::size_t row : rows) {
        const double gpus = table_.number(row, "num_gpus").value_or(0.0);
        fewest = fewest == 0.0 ? gpus : std::min(fewest, gpus);
        most = std::max(most, gpus);
        topologies.insert(table_.text(row, "topology_name"));
      }
    }
    std::string text = fmt::format("{} point{}", points_.size(), points_.size() > 1 ? "s" : "");
    if (!runs_.empty()) {
      text += fmt::format(" of {} run{} on {} ({})", runs_.size(), runs_.size() > 1 ? "s" : "",
                          fewest == most ? fmt::format("{:.0f} GPUs", most)
                                         : fmt::format("{:.0f} to {:.0f} GPUs", fewest, most),
                          escape_html(fmt::format("{}", fmt::join(topologies, ", "))));
    }
    if (num_failed_ > 0) {
      text += fmt::format("; <span class=\"warn\">{} failed</span> (listed below)", num_failed_);
    }
    if (!facts_.is_null() && facts_["points"].get<std::size_t>() > points_.size()) {
      text += fmt::format(
          "; <span class=\"warn\">{} of the sweep's {} points are missing</span>: "
          "it has not ended",
          facts_["points"].get<std::size_t>() - points_.size(),
          facts_["points"].get<std::size_t>());
    }
    paragraphs_.push_back(text + ".");
  }

  void add_gains() {
    const std::string column = ratio_column();
    if (column.empty()) return;
    std::string list = fmt::format(
        "<table class=\"gains\"><caption>Speed-up over {} at the same point</caption><thead><tr>"
        "<th>run</th><th>median</th><th>least</th><th>most</th><th>faster</th><th>equal within "
        "{:.0f}&nbsp;%</th><th>slower</th><th>points</th></tr></thead><tbody>",
        ratio_name(), 100.0 * kEqual);
    for (const std::string& run : runs_) {
      std::vector<double> ratios;
      for (const std::size_t row : rows_of_.at(run)) {
        if (const auto ratio = table_.number(row, column)) ratios.push_back(*ratio);
      }
      if (ratios.empty()) continue;
      std::sort(ratios.begin(), ratios.end());
      const auto faster = static_cast<std::size_t>(
          std::count_if(ratios.begin(), ratios.end(), [](double r) { return r > 1.0 + kEqual; }));
      const auto slower = static_cast<std::size_t>(
          std::count_if(ratios.begin(), ratios.end(), [](double r) { return r < 1.0 - kEqual; }));
      list += fmt::format(
          "<tr><th>{}{}</th><td>{:.2f}x</td><td>{:.2f}x</td><td>{:.2f}x</td><td>{}</td><td>{}</td>"
          "<td>{}</td><td>{}</td></tr>",
          escape_html(run), exact(run) ? "" : " <span class=\"warn\">not exact</span>",
          median(ratios), ratios.front(), ratios.back(), share_text(faster, ratios.size()),
          share_text(ratios.size() - faster - slower, ratios.size()),
          share_text(slower, ratios.size()), ratios.size());
    }
    paragraphs_.push_back(list + "</tbody></table>");
  }

  void add_best_point() {
    const std::string column = ratio_column();
    std::optional<std::size_t> best;
    for (const std::string& run : runs_) {
      if (!exact(run)) continue;
      for (const std::size_t row : rows_of_.at(run)) {
        const auto ratio = column.empty() ? std::nullopt : table_.number(row, column);
        if (ratio && (!best || *ratio > *table_.number(*best, column))) best = row;
      }
    }
    if (!best) return;
    std::vector<std::string> settings;
    for (const std::string& name : table_.columns) {
      if (name.starts_with("set.")) {
        settings.push_back(escape_html(name.substr(4) + " = " + table_.text(*best, name)));
      }
    }
    paragraphs_.push_back(fmt::format("The largest exact gain is {:.2f}x, by {} at {}.",
                                      *table_.number(*best, column),
                                      bold(table_.text(*best, "run")), fmt::join(settings, ", ")));
  }

  void add_binding_tier() {
    if (!table_.find("busiest_link_tier")) return;
    std::map<std::string, std::size_t> rows_of_tier;
    std::size_t total = 0;
    for (const auto& [run, rows] : rows_of_) {
      for (const std::size_t row : rows) {
        const std::string tier = table_.text(row, "busiest_link_tier");
        if (tier.empty()) continue;
        ++rows_of_tier[tier];
        ++total;
      }
    }
    std::vector<std::string> parts;
    for (const auto& [tier, count] : rows_of_tier) {
      parts.push_back(fmt::format("{} in {}", tier == "scale_up" ? "scale-up" : tier,
                                  share_text(count, total)));
    }
    if (parts.empty()) return;
    paragraphs_.push_back(
        fmt::format("The busiest link belongs to this tier: {}.", fmt::join(parts, ", ")));
  }

  void add_baseline() {
    std::string text =
        "Speed-ups over <b>standard</b> and over <b>dedup + contiguous</b> compare runs of one "
        "point";
    if (!facts_.is_null() && !facts_["baseline"].empty()) {
      std::vector<std::string> parts;
      for (const auto& [key, value] : facts_["baseline"].items()) {
        parts.push_back(escape_html(key + " = " + value.get<std::string>()));
      }
      text += fmt::format("; the sweep's baseline is {}, everything else equal",
                          bold(fmt::format("{}", fmt::join(parts, ", "))));
    }
    paragraphs_.push_back(text + ".");
  }

  const CsvTable& table_;
  const nlohmann::json& facts_;
  std::set<std::string> points_;
  std::size_t num_failed_ = 0;
  std::vector<std::string> runs_;  // in order of appearance
  std::map<std::string, std::vector<std::size_t>> rows_of_;
  std::vector<std::string> paragraphs_;
};

}  // namespace

std::vector<std::string> sweep_summary(const CsvTable& table, const nlohmann::json& facts) {
  return SweepSummary(table, facts).write();
}

}  // namespace coterie
