#include <fmt/format.h>

#include <utility>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "core/provenance.hpp"
#include "sim/report/pages.hpp"
#include "topologies/diagram.hpp"
#include "workloads/experiment.hpp"

namespace coterie {
namespace embedded {
using Files = std::vector<std::pair<std::string, std::string>>;
extern const Files report_files;
}  // namespace embedded

namespace {

const std::string& embedded_file(std::string_view name) {
  for (const auto& [known, text] : embedded::report_files) {
    if (known == name) return text;
  }
  throw Error(ExitCode::kInternalError, fmt::format("no embedded file \"{}\"", name));
}

// The library keeps its own file name, which is the one minified file.
const std::string& plotting_library() {
  for (const auto& [name, text] : embedded::report_files) {
    if (name.ends_with(".min.js")) return text;
  }
  throw Error(ExitCode::kInternalError, "no embedded plotting library");
}

// "<" may begin "</script>" or "<!--", which would end the element that holds the data.
std::string data_text(const nlohmann::ordered_json& data) {
  std::string out;
  for (const char c : dump_json(data)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

std::string drawings_html(const std::vector<Drawing>& drawings) {
  std::string out;
  for (const Drawing& drawing : drawings) {
    out += fmt::format("<figure class=\"topology\"><figcaption>{}</figcaption>\n{}</figure>\n",
                       escape_html(drawing.title),
                       drawing.svg.empty()
                           ? fmt::format("<p class=\"note\">{}</p>\n", escape_html(drawing.problem))
                           : drawing.svg);
  }
  return out;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string render(const Page& page) {
  std::string summary;
  for (const std::string& paragraph : page.summary) {
    summary += paragraph.starts_with("<table") ? paragraph + "\n" : "<p>" + paragraph + "</p>\n";
  }
  const std::vector<std::pair<std::string_view, std::string>> parts{
      {"title", escape_html(page.title)},
      {"subtitle", escape_html(page.subtitle)},
      {"version", escape_html(version())},
      {"summary", summary},
      {"topologies", drawings_html(page.drawings)},
      {"style", embedded_file("style.css")},
      {"library", plotting_library()},
      {"data", data_text(page.data)},
      {"script",
       embedded_file("common.js") + embedded_file("table.js") + embedded_file(page.script)}};

  // "{{name}}" in the template; what is put in is not searched again.
  const std::string& text = embedded_file("page.html");
  std::string out;
  std::size_t position = 0;
  while (true) {
    const std::size_t begin = text.find("{{", position);
    out += text.substr(position, begin - position);
    if (begin == std::string::npos) return out;
    const std::size_t end = text.find("}}", begin);
    const std::string_view name = std::string_view(text).substr(begin + 2, end - begin - 2);
    for (const auto& [known, content] : parts) {
      if (known == name) out += content;
    }
    position = end + 2;
  }
}

Drawing draw_topology(const std::string& yaml, const std::filesystem::path& where,
                      const std::vector<Override>& overrides) {
  Drawing drawing;
  try {
    const Cluster cluster = load_experiment_cluster(yaml, where, overrides);
    const FabricModel model = build_fabric(cluster);
    drawing.title =
        fmt::format("{}: {} in {} node{}", cluster.name, counted(cluster.num_gpus(), "GPU"),
                    cluster.num_nodes, cluster.num_nodes > 1 ? "s" : "");
    drawing.svg = draw_svg(cluster, model, summarize(cluster, model));
  } catch (const InputError& error) {
    drawing.title = "not drawn";
    drawing.problem = fmt::format("The topology cannot be drawn: {}", error.what());
  }
  return drawing;
}

}  // namespace coterie
