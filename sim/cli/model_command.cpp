// `coterie model`: the model presets.

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "workloads/model.hpp"

namespace coterie {
namespace {

std::string groups_text(const ModelShape& model) {
  if (model.num_groups <= 1) return "-";
  return fmt::format("{} of {}", model.num_topk_groups, model.num_groups);
}

nlohmann::json model_json(const ModelShape& model) {
  return {{"name", model.name},
          {"description", model.description},
          {"num_layers", model.num_layers},
          {"moe_layers", model.moe_layers},
          {"hidden", model.hidden},
          {"expert_intermediate", model.expert_intermediate},
          {"num_experts", model.num_experts},
          {"num_topk", model.num_topk},
          {"num_shared_experts", model.num_shared_experts},
          {"shared_intermediate", model.shared_intermediate},
          {"num_groups", model.num_groups},
          {"num_topk_groups", model.num_topk_groups},
          {"routing", model.routing}};
}

void list_models(bool json) {
  std::vector<ModelShape> models;
  for (const ModelPreset& preset : model_presets()) models.push_back(load_model(preset.name));
  if (json) {
    nlohmann::json document{{"schema_version", 1}, {"models", nlohmann::json::array()}};
    for (const ModelShape& model : models) document["models"].push_back(model_json(model));
    fmt::print("{}\n", dump_json(document, 2));
    return;
  }
  Table table{
      {"model", "layers", "MoE", "hidden", "intermediate", "experts", "top-k", "shared", "groups"},
      {}};
  for (const ModelShape& model : models) {
    table.rows.push_back({model.name, std::to_string(model.num_layers),
                          std::to_string(model.moe_layers.size()), std::to_string(model.hidden),
                          std::to_string(model.expert_intermediate),
                          std::to_string(model.num_experts), std::to_string(model.num_topk),
                          std::to_string(model.num_shared_experts), groups_text(model)});
  }
  fmt::print("{}", render(table));
}

void show_model(const ModelShape& model, bool json) {
  if (json) {
    nlohmann::json document = model_json(model);
    document["schema_version"] = 1;
    fmt::print("{}\n", dump_json(document, 2));
    return;
  }
  // One expert is the three matrices of a gated MLP: up, gate and down.
  const double expert_parameters = 3.0 * model.hidden * model.expert_intermediate;
  const double routed =
      expert_parameters * model.num_experts * static_cast<double>(model.moe_layers.size());
  fmt::print("{}\n", model.description);
  fmt::print("  routing              {}\n", model.routing);
  fmt::print("  MoE layers           {} of {}: {}\n", model.moe_layers.size(), model.num_layers,
             fmt::join(model.moe_layers, " "));
  fmt::print("  hidden               {}\n", model.hidden);
  fmt::print("  expert intermediate  {}\n", model.expert_intermediate);
  fmt::print("  routed experts       {}, top-{}, groups {}\n", model.num_experts, model.num_topk,
             groups_text(model));
  fmt::print("  shared experts       {}", model.num_shared_experts);
  fmt::print("{}\n", model.num_shared_experts > 0
                         ? fmt::format(" of intermediate {}", model.shared_intermediate)
                         : "");
  fmt::print("  routed parameters    {:.1f} billion\n", routed / 1e9);
}

struct ModelArguments {
  std::string name;
  std::vector<std::string> overrides;
  bool json = false;
};

}  // namespace

void add_model_command(CLI::App& app) {
  CLI::App* model = app.add_subcommand("model", "Lists and shows model presets");
  model->require_subcommand(1);
  model->footer("Example:\n  coterie model list");

  auto list = std::make_shared<ModelArguments>();
  CLI::App* list_command = model->add_subcommand("list", "Lists the presets with their shapes");
  list_command->add_flag("--json", list->json, "Print JSON only");
  list_command->footer("Example:\n  coterie model list --json");
  list_command->callback([list] { list_models(list->json); });

  auto show = std::make_shared<ModelArguments>();
  CLI::App* show_command = model->add_subcommand("show", "Shows one model");
  show_command->add_option("MODEL", show->name, "A preset's name or a YAML file")->required();
  add_set_option(*show_command, show->overrides, "the model");
  show_command->add_flag("--json", show->json, "Print JSON only");
  show_command->footer("Example:\n  coterie model show deepseek_v3");
  show_command->callback(
      [show] { show_model(load_model(show->name, parse_overrides(show->overrides)), show->json); });
}

}  // namespace coterie
