#include "plan.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.hpp"

namespace stan_infer {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxSidecar = 1 << 20;
constexpr std::int64_t kMaxSize = 1 << 24;  // of one axis
constexpr std::int64_t kMaxPlan = std::int64_t{1} << 34;
constexpr std::size_t kMaxPlans = 256, kMaxProfiles = 64, kMaxRank = 8;
const char* const kHelp = "; build it again: stan-infer export FOLDER --format tensorrt";

std::int64_t integer(const Json& value, std::int64_t most) {
  // An unsigned number may be beyond what a signed one holds.
  const bool small =
      value.is_number_unsigned() && value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
  if (!small) throw std::invalid_argument("a number");
  return value.get<std::int64_t>();
}

Shape shape_of(const Json& values) {
  if (!values.is_array() || values.size() > kMaxRank) throw std::invalid_argument("a shape");
  Shape shape;
  for (const Json& value : values) shape.push_back(integer(value, kMaxSize));
  return shape;
}

Plan plan_of(const std::string& file, const Json& json) {
  Plan plan;
  plan.file = file;
  plan.role = json.at("role").get<std::string>();
  for (std::size_t i = 0; i < 3; ++i) {
    plan.version[i] = static_cast<int>(integer(json.at("trt_version").at(i), 1'000'000));
  }
  for (const Json& flag : json.at("flags")) {
    plan.version_compatible |= flag.get<std::string>() == "VERSION_COMPATIBLE";
  }
  plan.ampere_plus = json.at("hardware_compatibility").get<std::string>() == "AMPERE_PLUS";
  plan.sm = json.at("built_on").at("sm").get<std::string>();
  plan.onnx_sha256 = json.at("onnx_sha256").get<std::string>();
  plan.manifest_sha256 = json.at("manifest_sha256").get<std::string>();
  plan.sha256 = json.at("plan_sha256").get<std::string>();
  plan.bytes = static_cast<std::uint64_t>(integer(json.at("plan_bytes"), kMaxPlan));
  const Json& profiles = json.at("profiles");
  if (!profiles.is_array() || profiles.size() > kMaxProfiles) {
    throw std::invalid_argument("profiles");
  }
  for (const Json& entry : profiles) {
    Profile profile;
    for (const auto& [input, shapes] : entry.items()) {
      for (std::size_t i = 0; i < 3; ++i) profile[input][i] = shape_of(shapes.at(i));
      const auto& [low, best, high] = profile[input];
      if (low.size() != best.size() || low.size() != high.size()) {
        throw std::invalid_argument("a profile's ranks");
      }
    }
    plan.profiles.push_back(std::move(profile));
  }
  return plan;
}

std::string dotted(const std::array<int, 3>& version) {
  return std::to_string(version[0]) + "." + std::to_string(version[1]) + "." +
         std::to_string(version[2]);
}

int number_of(const std::string& sm) {
  const std::string digits = sm.rfind("sm_", 0) == 0 ? sm.substr(3) : "";
  const bool plain =
      !digits.empty() && digits.size() < 5 &&
      std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
  return plain ? std::stoi(digits) : 0;
}

bool takes(const std::array<Shape, 3>& range, const Shape& shape) {
  const auto& [low, best, high] = range;
  if (low.size() != shape.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < low[i] || shape[i] > high[i]) return false;
  }
  return true;
}

double span_of(const std::array<Shape, 3>& range) {
  double count = 1;
  for (std::size_t i = 0; i < range[0].size(); ++i) {
    count *= static_cast<double>(range[2][i] - range[0][i] + 1);
  }
  return count;
}

}  // namespace

std::optional<Plan> parse_sidecar(const std::string& file, std::string_view text) {
  try {
    const Json json = Json::parse(text.begin(), text.end());
    if (json.at("schema").get<std::string>().rfind("1.", 0) != 0) {
      throw std::invalid_argument("the schema");
    }
    if (json.at("flavor").get<std::string>() != "tensorrt") return std::nullopt;
    return plan_of(file, json);
  } catch (const std::exception& e) {  // of the JSON library and of plan_of
    throw bad_folder(shown(file) + ".json is malformed (" + shown(e.what(), 120) + ")" + kHelp);
  }
}

std::vector<Plan> list_plans(const Folder& folder) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder.path() / "engines", error);
  if (error) return {};
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    const bool is_plan = entry.path().extension() == ".plan";
    if (is_plan && is_plain_name(name)) names.push_back("engines/" + name);
    if (names.size() > kMaxPlans) throw bad_folder("engines/ holds too many plans; remove some");
  }
  std::sort(names.begin(), names.end());
  std::vector<Plan> plans;
  for (const std::string& name : names) {
    const Bytes bytes = folder.read(name + ".json", kMaxSidecar);
    std::optional<Plan> plan =
        parse_sidecar(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (plan) plans.push_back(std::move(*plan));
  }
  return plans;
}

const Plan& choose_plan(const std::vector<Plan>& plans, const std::string& role,
                        const std::array<int, 3>& version, const std::string& sm,
                        const std::string& onnx_sha256, const std::string& manifest_sha256) {
  std::string there;
  for (const Plan& plan : plans) {
    if (plan.role != role) continue;
    // A version-compatible plan holds NVIDIA's lean runtime, host code, which is not loaded.
    const bool same = plan.version == version && !plan.version_compatible;
    const bool fits = plan.sm == sm || (plan.ampere_plus && number_of(sm) >= 80);
    if (!same || !fits) {
      there += (there.empty() ? "" : ", ") + shown(plan.file) + " (TensorRT " +
               dotted(plan.version) + ", " + shown(plan.sm, 12) +
               (plan.version_compatible ? ", with host code)" : ")");
      continue;
    }
    if (plan.onnx_sha256 != onnx_sha256 || plan.manifest_sha256 != manifest_sha256) {
      throw bad_folder(plan.file + " was built from another export than the folder's" + kHelp);
    }
    return plan;
  }
  const std::string here = "TensorRT " + dotted(version) + " on " + sm;
  if (there.empty()) {
    throw bad_folder("the folder holds no plan of TensorRT for " + role + ", which " + here +
                     " needs" + kHelp);
  }
  throw bad_folder("no plan for " + role + " is for " + here + "; there are " + there + kHelp);
}

Bytes read_plan(const Folder& folder, const Plan& plan) {
  return folder.read_checked(plan.file, plan.bytes, plan.sha256);
}

int profile_of(const Plan& plan, const std::string& input, const Shape& shape) {
  int best = -1;
  double least = 0;
  std::string ranges;
  for (std::size_t i = 0; i < plan.profiles.size(); ++i) {
    const auto found = plan.profiles[i].find(input);
    if (found == plan.profiles[i].end()) continue;
    ranges += (ranges.empty() ? "" : "; ") + to_string(found->second[0]) + " to " +
              to_string(found->second[2]);
    const double span = span_of(found->second);
    if (takes(found->second, shape) && (best < 0 || span < least)) {
      best = static_cast<int>(i);
      least = span;
    }
  }
  if (best < 0) {
    throw bad_folder(plan.file + " has no profile for " + shown(input) + " " + to_string(shape) +
                     "; it takes " + ranges + kHelp);
  }
  return best;
}

}  // namespace stan_infer
