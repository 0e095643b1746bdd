{{- define "adaptrain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* The name of everything: the release's, with the chart's unless it is in there already. */}}
{{- define "adaptrain.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "adaptrain.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "adaptrain.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "adaptrain.operator" -}}
{{ include "adaptrain.fullname" . }}-operator
{{- end }}

{{- /* Of cluster-wide objects: two releases may have one name in two namespaces. */}}
{{- define "adaptrain.clusterName" -}}
{{ .Release.Namespace }}-{{ include "adaptrain.operator" . }}
{{- end }}

{{- define "adaptrain.selector" -}}
app.kubernetes.io/name: {{ include "adaptrain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "adaptrain.labels" -}}
{{ include "adaptrain.selector" . }}
app.kubernetes.io/part-of: adaptrain
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "adaptrain.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "adaptrain.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "adaptrain.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "adaptrain.trainerImage" -}}
{{- default (printf "adaptrain-trainer:%s" .Chart.AppVersion) .Values.trainer.image }}
{{- end }}

{{- define "adaptrain.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Whether namespaces assign users, so that a pod which names its own is refused. */}}
{{- define "adaptrain.assignedUsers" -}}
{{- if eq .Values.jobs.users "Auto" }}
{{- .Capabilities.APIVersions.Has "security.openshift.io/v1" }}
{{- else }}
{{- eq .Values.jobs.users "Assigned" }}
{{- end }}
{{- end }}

{{- define "adaptrain.podSecurity" -}}
runAsNonRoot: true
{{- if ne (include "adaptrain.assignedUsers" .) "true" }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* What the operator needs where its jobs are. */}}
{{- define "adaptrain.rules" -}}
- apiGroups: [adaptrain.io]
  resources: [adaptivetrainingjobs]
  verbs: [get, list, watch, create, update, delete] # it makes those of a search
- apiGroups: [adaptrain.io]
  resources: [architecturesearches]
  verbs: [get, list, watch, delete]
- apiGroups: [adaptrain.io]
  resources: [adaptivetrainingjobs/status, architecturesearches/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, update] # only those that their job controls
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, update] # only those that their job controls
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, update] # only those that their job controls
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, create, update]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [limitranges]
  verbs: [list] # after a refusal, so that what we choose is enough
- apiGroups: [""]
  resources: [events]
  verbs: [create, update]
{{- end }}

{{- define "adaptrain.subject" -}}
- kind: ServiceAccount
  name: {{ include "adaptrain.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Who may reach jobs' metrics, as JSON: the operator as well, which asks coordinators on the same port. */}}
{{- define "adaptrain.metricsFrom" -}}
{{- if .Values.jobs.metricsFrom -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
{{- $pods := dict "matchLabels" (include "adaptrain.selector" . | fromYaml) -}}
{{- append .Values.jobs.metricsFrom (dict "namespaceSelector" $namespace "podSelector" $pods) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end }}
