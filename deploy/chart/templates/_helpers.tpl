{{- define "turnout.name" -}}
{{- if contains "turnout" .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-turnout" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "turnout.selector" -}}
app.kubernetes.io/name: turnout
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "turnout.labels" -}}
{{ include "turnout.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "turnout.serviceAccount" -}}
{{ .Values.serviceAccount.existing | default (include "turnout.name" .) }}
{{- end -}}

{{- define "turnout.claim" -}}
{{ .Values.persistence.existingClaim | default (include "turnout.name" .) }}
{{- end -}}

{{- define "turnout.flows" -}}
{{ .Values.flows.existingConfigMap | default (printf "%s-flows" (include "turnout.name" . | trunc 57)) }}
{{- end -}}

{{- /* A digest is written after @, a tag after a colon. */ -}}
{{- define "turnout.image" -}}
{{- if hasPrefix "sha256:" .Values.image.tag -}}
{{ .Values.image.repository }}@{{ .Values.image.tag }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}
{{- end -}}
